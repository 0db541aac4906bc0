#include "bind/bind.h"

namespace brasa {

void bind_loss(py::module_&) {}

}  // namespace brasa
