#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "optim/optim.h"

namespace brasa {
namespace {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
    case DType::uint8:
      return "uint8";
    case DType::other:
      break;
  }
  return "another dtype";
}

/// Arrays, and the name they have in messages. A tuple: no other thread can take an array out of it
/// while the GIL is released. They are read directly, because LeNet's step has 40 of them, and one
/// by one through pybind11's containers they would cost more than the step.
struct NamedArrays {
  const char* name;
  py::tuple arrays;

  NamedArrays(const char* n, py::handle source) : name(n) {
    if (!PyList_Check(source.ptr()) && !PyTuple_Check(source.ptr()))
      throw py::type_error(std::string(n) + ": expected a list of arrays, got " +
                           Py_TYPE(source.ptr())->tp_name);
    arrays = py::reinterpret_steal<py::tuple>(PySequence_Tuple(source.ptr()));
    if (!arrays) throw py::error_already_set();
  }
  int64_t size() const { return PyTuple_GET_SIZE(arrays.ptr()); }
  py::handle operator[](int64_t i) const { return PyTuple_GET_ITEM(arrays.ptr(), i); }
};

/// The first parameter: what all other arrays are compared with.
struct Model {
  PyTypeObject* type;
  DType dtype;
};

std::string place(const NamedArrays& list, int64_t i) {
  return std::string(list.name) + "[" + std::to_string(i) + "]: ";
}

ArrayView load_entry(const NamedArrays& list, int64_t i, const Model& model, bool writable) {
  const py::handle entry = list[i];
  if (Py_TYPE(entry.ptr()) != model.type)
    throw py::type_error(place(list, i) + "expected an array on the device of params[0] (" +
                         model.type->tp_name + "), got " + Py_TYPE(entry.ptr())->tp_name);
  ArrayView view;
  try {
    if (!load_view(entry, view, writable)) throw py::type_error("no array");
  } catch (const py::value_error& error) {
    throw py::value_error(place(list, i) + error.what());
  } catch (const py::type_error& error) {
    throw py::type_error(place(list, i) + error.what());
  }
  if (view.dtype != model.dtype)
    throw py::type_error(place(list, i) + "expected " + dtype_name(model.dtype) +
                         " as params[0] has, got " + dtype_name(view.dtype));
  if (writable && !is_c_order(view))
    throw py::value_error(place(list, i) + "expected a C-contiguous array");
  return view;
}

ArrayView load_like(const NamedArrays& list, int64_t i, const Model& model, bool writable,
                    const ArrayView& param) {
  const ArrayView view = load_entry(list, i, model, writable);
  bool same = view.rank == param.rank;
  for (int d = 0; same && d < view.rank; ++d) same = view.shape[d] == param.shape[d];
  if (!same)
    throw py::value_error(place(list, i) + "expected shape " + shape_text(param) +
                          " as the parameter has, got " + shape_text(view));
  return view;
}

/// The operands of one step. `states` are those the rule uses, in its order.
class Operands {
 public:
  Operands(py::handle params, py::handle grads, std::vector<NamedArrays> states)
      : params_("params", params), grads_("grads", grads), states_(std::move(states)) {
    require_length(grads_);
    for (const NamedArrays& list : states_) require_length(list);
  }

  /// Calls f.operator()<T>(context, list). False, and nothing is done, when a gradient must be
  /// copied first because it is not C-contiguous.
  template <class F> bool step(const F& f) const {
    if (params_.size() == 0) return true;
    Model model{Py_TYPE(params_[0].ptr()), DType::other};
    ArrayView first;
    if (!load_view(params_[0], first, true)) throw py::type_error("params[0]: expected an array");
    model.dtype = first.dtype;
    if (model.dtype != DType::float32 && model.dtype != DType::float64)
      throw py::type_error("params[0]: expected float32 or float64");
    bool contiguous = true;
    visit<float, double>(model.dtype, [&]<class T>() {
      std::vector<StepTensor<T>> tensors(size_t(params_.size()));
      StepList<T> list{tensors.data(), params_.size(), 0, 0};
      for (int64_t i = 0; i < params_.size(); ++i)
        contiguous &= load_tensor(i, model, tensors[size_t(i)], list);
      if (!contiguous) return;
      const Context ctx = make_context(first);
      const ReleaseGil gil(list.elements);
      f.template operator()<T>(ctx, list);
    });
    return contiguous;
  }

 private:
  void require_length(const NamedArrays& list) const {
    if (list.size() == params_.size()) return;
    throw py::value_error(std::string(list.name) + ": expected " + std::to_string(params_.size()) +
                          " arrays as in params, got " + std::to_string(list.size()));
  }
  template <class T>
  bool load_tensor(int64_t i, const Model& model, StepTensor<T>& tensor, StepList<T>& list) const {
    const ArrayView param = load_entry(params_, i, model, true);
    const ArrayView grad = load_like(grads_, i, model, false, param);
    tensor.param = param.as<T>();
    tensor.grad = grad.as<const T>();
    for (size_t k = 0; k < states_.size(); ++k)
      tensor.state[k] = load_like(states_[k], i, model, true, param).as<T>();
    tensor.size = param.size;
    tensor.first_chunk = list.chunks;
    list.chunks += (param.size + kStepChunk - 1) / kStepChunk;
    list.elements += param.size;
    return is_c_order(grad);
  }

  NamedArrays params_, grads_;
  std::vector<NamedArrays> states_;
};

/// One float64 in device memory, or null.
const double* device_scale(const OptionalIn& scale) {
#if !defined(BRASA_FOR_CUDA)
  BRASA_REQUIRE(!scale, "numbers in device memory are for CUDA");
#endif
  if (!scale) return nullptr;
  require_dtype(scale, DType::float64);
  BRASA_REQUIRE(scale.size == 1, "one scale needed");
  return scale.as<const double>();
}

/// Guards, each a row (overflow, skipped).
StepGuard* load_guards(const ArrayView& guards) {
  require_dtype(guards, DType::int32);
  require_c_order(guards);
  BRASA_REQUIRE(guards.size % 2 == 0, "two numbers for a guard needed");
  return guards.as<StepGuard>();
}

/// What the device has: `all` are rows of as many numbers as Params has.
template <class Params>
StepNumbers device_numbers(const OptionalIn& all, const OptionalIn& scale,
                           const OptionalIn& guard) {
#if !defined(BRASA_FOR_CUDA)
  BRASA_REQUIRE(!all && !guard, "numbers in device memory are for CUDA");
#endif
  StepNumbers numbers{nullptr, 0, device_scale(scale), nullptr};
  if (all) {
    require_dtype(all, DType::float64);
    require_c_order(all);
    BRASA_REQUIRE(all.size >= Params::kNumbers, "too few numbers");
    numbers.all = all.as<const double>();
    numbers.rows = int32_t(all.size / Params::kNumbers);
  }
  if (guard) {
    BRASA_REQUIRE(guard.size == 2, "one guard needed");
    numbers.guard = load_guards(guard);
  }
  return numbers;
}

}  // namespace

// Every step returns what Operands::step does. Its numbers come in the order of its Params.
void bind_optim(py::module_& m) {
  using Arrays = py::handle;
  m.def(
      "sgd_step",
      [](Arrays params, Arrays grads, Arrays buffers, double lr, double momentum, double dampening,
         double weight_decay, double scale, bool nesterov, OptionalIn numbers, OptionalIn scale_at,
         OptionalIn guard) {
        const StepNumbers n = device_numbers<SgdParams>(numbers, scale_at, guard);
        const SgdParams p{lr, momentum, dampening, weight_decay, scale, nesterov};
        std::vector<NamedArrays> states;
        if (momentum != 0) states.emplace_back("buffers", buffers);
        return Operands(params, grads, std::move(states))
            .step([&]<class T>(Context ctx, StepList<T> list) {
              device::sgd_step<T>(ctx, list, p, n);
            });
      },
      "params"_a, "grads"_a, "buffers"_a, "lr"_a, "momentum"_a, "dampening"_a, "weight_decay"_a,
      "scale"_a, "nesterov"_a, "numbers"_a, "scale_at"_a, "guard"_a);

  m.def(
      "adam_step",
      [](Arrays params, Arrays grads, Arrays exp_avg, Arrays exp_avg_sq, double step_size,
         double beta1, double beta2, double eps, double root_correction, double weight_decay,
         double decay, double scale, OptionalIn numbers, OptionalIn scale_at, OptionalIn guard) {
        const StepNumbers n = device_numbers<AdamParams>(numbers, scale_at, guard);
        const AdamParams p{step_size,       beta1,        beta2, eps,
                           root_correction, weight_decay, decay, scale};
        return Operands(params, grads, {{"exp_avg", exp_avg}, {"exp_avg_sq", exp_avg_sq}})
            .step([&]<class T>(Context ctx, StepList<T> list) {
              device::adam_step<T>(ctx, list, p, n);
            });
      },
      "params"_a, "grads"_a, "exp_avg"_a, "exp_avg_sq"_a, "step_size"_a, "beta1"_a, "beta2"_a,
      "eps"_a, "root_correction"_a, "weight_decay"_a, "decay"_a, "scale"_a, "numbers"_a,
      "scale_at"_a, "guard"_a);

  m.def(
      "rmsprop_step",
      [](Arrays params, Arrays grads, Arrays square_avg, Arrays momentum_buffer, Arrays grad_avg,
         double lr, double alpha, double eps, double weight_decay, double momentum, double scale,
         bool centered, OptionalIn numbers, OptionalIn scale_at, OptionalIn guard) {
        const StepNumbers n = device_numbers<RmspropParams>(numbers, scale_at, guard);
        const RmspropParams p{lr, alpha, eps, weight_decay, momentum, scale, centered};
        std::vector<NamedArrays> states{{"square_avg", square_avg}};
        if (momentum != 0) states.emplace_back("momentum_buffer", momentum_buffer);
        if (centered) states.emplace_back("grad_avg", grad_avg);
        return Operands(params, grads, std::move(states))
            .step([&]<class T>(Context ctx, StepList<T> list) {
              device::rmsprop_step<T>(ctx, list, p, n);
            });
      },
      "params"_a, "grads"_a, "square_avg"_a, "momentum_buffer"_a, "grad_avg"_a, "lr"_a, "alpha"_a,
      "eps"_a, "weight_decay"_a, "momentum"_a, "scale"_a, "centered"_a, "numbers"_a, "scale_at"_a,
      "guard"_a);

  m.def(
      "adagrad_step",
      [](Arrays params, Arrays grads, Arrays state_sum, double lr, double weight_decay, double eps,
         double scale, OptionalIn numbers, OptionalIn scale_at, OptionalIn guard) {
        const StepNumbers n = device_numbers<AdagradParams>(numbers, scale_at, guard);
        const AdagradParams p{lr, weight_decay, eps, scale};
        return Operands(params, grads, {{"state_sum", state_sum}})
            .step([&]<class T>(Context ctx, StepList<T> list) {
              device::adagrad_step<T>(ctx, list, p, n);
            });
      },
      "params"_a, "grads"_a, "state_sum"_a, "lr"_a, "weight_decay"_a, "eps"_a, "scale"_a,
      "numbers"_a, "scale_at"_a, "guard"_a);

  m.def(
      "adadelta_step",
      [](Arrays params, Arrays grads, Arrays square_avg, Arrays acc_delta, double lr, double rho,
         double eps, double weight_decay, double scale, OptionalIn numbers, OptionalIn scale_at,
         OptionalIn guard) {
        const StepNumbers n = device_numbers<AdadeltaParams>(numbers, scale_at, guard);
        const AdadeltaParams p{lr, rho, eps, weight_decay, scale};
        return Operands(params, grads, {{"square_avg", square_avg}, {"acc_delta", acc_delta}})
            .step([&]<class T>(Context ctx, StepList<T> list) {
              device::adadelta_step<T>(ctx, list, p, n);
            });
      },
      "params"_a, "grads"_a, "square_avg"_a, "acc_delta"_a, "lr"_a, "rho"_a, "eps"_a,
      "weight_decay"_a, "scale"_a, "numbers"_a, "scale_at"_a, "guard"_a);

  m.def(
      "unscale_gradients",
      [](Arrays grads, double scale, OptionalIn scale_at, Out found) {
        const double* const at = device_scale(scale_at);
        require_dtype(found, DType::int32);
        BRASA_REQUIRE(found.size == 1, "one flag needed, got " + shape_text(found));
        return Operands(grads, grads, {}).step([&]<class T>(Context ctx, StepList<T> list) {
          device::unscale_gradients<T>(ctx, list, scale, at, found.as<int32_t>());
        });
      },
      "grads"_a, "scale"_a, "scale_at"_a, "found"_a);

  m.def(
      "update_scale",
      [](Out state, Out guards) {
        require_dtype(state, DType::float64);
        require_c_order(state);
        BRASA_REQUIRE(state.size == 5, "the five numbers of a scale needed");
        device::update_scale<double>(make_context(state), state.as<ScaleState>(),
                                     load_guards(guards), guards.size / 2);
      },
      "state"_a, "guards"_a);
}

}  // namespace brasa
