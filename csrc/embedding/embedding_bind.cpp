#include "bind/bind.h"

namespace brasa {

void bind_embedding(py::module_&) {}

}  // namespace brasa
