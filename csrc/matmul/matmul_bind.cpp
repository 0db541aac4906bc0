#include "bind/bind.h"

namespace brasa {

void bind_matmul(py::module_&) {}

}  // namespace brasa
