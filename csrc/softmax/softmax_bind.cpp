#include "bind/bind.h"

namespace brasa {

void bind_softmax(py::module_&) {}

}  // namespace brasa
