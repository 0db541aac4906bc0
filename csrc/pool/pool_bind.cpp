#include "bind/bind.h"

namespace brasa {

void bind_pool(py::module_&) {}

}  // namespace brasa
