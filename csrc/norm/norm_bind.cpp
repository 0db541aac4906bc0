#include "bind/bind.h"

namespace brasa {

void bind_norm(py::module_&) {}

}  // namespace brasa
