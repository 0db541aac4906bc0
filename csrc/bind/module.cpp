// The module: the list of families, and what belongs to no family.
#include "bind/bind.h"

#if !defined(BRASA_FOR_CUDA)
#include "core/isa.h"
#endif

namespace brasa {

void bind_activation(py::module_& m);
void bind_attention(py::module_& m);
void bind_conv(py::module_& m);
void bind_ctc(py::module_& m);
void bind_dropout(py::module_& m);
void bind_elementary(py::module_& m);
void bind_embedding(py::module_& m);
void bind_loss(py::module_& m);
void bind_matmul(py::module_& m);
void bind_norm(py::module_& m);
void bind_optim(py::module_& m);
void bind_pool(py::module_& m);
void bind_rnn(py::module_& m);
void bind_shuffle(py::module_& m);
void bind_softmax(py::module_& m);
#if defined(BRASA_FOR_CUDA)
void bind_device(py::module_& m);
#else
void bind_host(py::module_& m);
#endif
#if defined(BRASA_EMULATED)
void bind_emulator(py::module_& m);
#endif

}  // namespace brasa

PYBIND11_MODULE(BRASA_MODULE, m, pybind11::mod_gil_not_used()) {
  brasa::bind_activation(m);
  brasa::bind_attention(m);
  brasa::bind_conv(m);
  brasa::bind_ctc(m);
  brasa::bind_dropout(m);
  brasa::bind_elementary(m);
  brasa::bind_embedding(m);
  brasa::bind_loss(m);
  brasa::bind_matmul(m);
  brasa::bind_norm(m);
  brasa::bind_optim(m);
  brasa::bind_pool(m);
  brasa::bind_rnn(m);
  brasa::bind_shuffle(m);
  brasa::bind_softmax(m);
#if defined(BRASA_FOR_CUDA)
  brasa::bind_device(m);
#else
  brasa::bind_host(m);
#endif
#if defined(BRASA_EMULATED)
  brasa::bind_emulator(m);
#endif
}
