#include "bind/bind.h"

namespace brasa {

void bind_dropout(py::module_&) {}

}  // namespace brasa
