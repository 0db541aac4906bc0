#include "bind/bind.h"

namespace brasa {

void bind_optim(py::module_&) {}

}  // namespace brasa
