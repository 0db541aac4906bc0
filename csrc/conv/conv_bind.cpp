#include "bind/bind.h"

namespace brasa {

void bind_conv(py::module_&) {}

}  // namespace brasa
