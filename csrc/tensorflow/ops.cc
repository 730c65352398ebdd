// The TensorFlow ops: interfaces and shapes. Their kernels are in kernels.h, for the devices of kernels_cpu.cc and
// kernels_gpu.cc.
//
// A solve's vectors are flat and padded (ncg_cuda.Layout); only products arrive one tensor per variable. None of the
// ops has a gradient: a CG solve is not differentiated through.
#include "ncg/chunk.h"
#include "ncg/state.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status StateShape(InferenceContext* c, int output) {
  c->set_output(output, c->Vector(ncg::kStateSize + 1));  // and the ticket: see Block in kernels.h
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("NcgPack")
    .Input("tensors: N * T")
    .Output("flat: T")
    .Attr("N: int >= 1")
    .Attr("T: {float, double}")
    .Attr("negate: bool = false")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      int64_t size = 0;
      for (int i = 0; i < c->num_inputs(); ++i) {
        const DimensionHandle elements = c->NumElements(c->input(i));
        if (!c->ValueKnown(elements)) {
          c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
          return absl::OkStatus();
        }
        size += (c->Value(elements) + ncg::kLanes - 1) / ncg::kLanes * ncg::kLanes;
      }
      c->set_output(0, c->Vector(size));
      return absl::OkStatus();
    })
    .Doc("The tensors one after the other, each on a multiple of 16 elements, zeros between; negated if asked.");

REGISTER_OP("NcgViews")
    .Input("flat: T")
    .Output("views: N * T")
    .Attr("N: int >= 1")
    .Attr("T: {float, double}")
    .Attr("shapes: list(shape)")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      std::vector<tensorflow::PartialTensorShape> shapes;
      TF_RETURN_IF_ERROR(c->GetAttr("shapes", &shapes));
      if (static_cast<int>(shapes.size()) != c->num_outputs()) {
        return absl::InvalidArgumentError("NcgViews: N must be the number of shapes");
      }
      for (int i = 0; i < c->num_outputs(); ++i) {
        ShapeHandle shape;
        TF_RETURN_IF_ERROR(c->MakeShapeFromPartialTensorShape(shapes[i], &shape));
        c->set_output(i, shape);
      }
      return absl::OkStatus();
    })
    .Doc("The tensors of a packed vector, as views that share its memory.");

REGISTER_OP("NcgCgBegin")
    .Input("b: T")
    .Input("tau: double")
    .Input("cg_tol: double")
    .Input("max_iter: int32")
    .Output("x: T")
    .Output("r: T")
    .Output("p: T")
    .Output("state: double")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      for (int i = 0; i < 3; ++i) c->set_output(i, c->input(0));
      return StateShape(c, 3);
    })
    .Doc(
        "x = 0, r = p = b times a power of two that keeps squares in range, and the state block of a solve of "
        "(H + tau I) x = b.");

REGISTER_OP("NcgCgIterate")
    .Input("hp: N * T")
    .Input("x: T")
    .Input("r: T")
    .Input("p: T")
    .Input("state: double")
    .Output("x_out: T")
    .Output("r_out: T")
    .Output("p_out: T")
    .Output("state_out: double")
    .Attr("N: int >= 1")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      const int first = c->num_inputs() - 4;
      for (int i = 0; i < 3; ++i) c->set_output(i, c->input(first + i));
      return StateShape(c, 3);
    })
    .Doc(
        "One CG iteration, both passes, given the undamped product H p of the packed direction p, one tensor per "
        "variable.");

REGISTER_OP("NcgCgFinish")
    .Input("x: T")
    .Input("r: T")
    .Input("p: T")
    .Input("state: double")
    .Output("x_out: T")
    .Output("state_out: double")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      c->set_output(0, c->input(0));
      return StateShape(c, 1);
    })
    .Doc("The solution: x with the step that the last iteration left out, in the units of b.");

REGISTER_OP("NcgMagnitude")
    .Input("a: T")
    .Output("sum: double")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      c->set_output(0, c->Scalar());
      return absl::OkStatus();
    })
    .Doc("The sum of |a|.");

REGISTER_OP("NcgDots")
    .Input("a: T")
    .Input("b: T")
    .Input("scale_a: double")
    .Input("scale_b: double")
    .Output("sums: double")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      c->set_output(0, c->Vector(3));
      return absl::OkStatus();
    })
    .Doc("a.b, a.a and b.b of scale_a a and scale_b b: powers of two that keep squares in range.");

REGISTER_OP("NcgScaled")
    .Input("a: T")
    .Input("b: T")
    .Input("first: bool")
    .Input("scale: double")
    .Input("factor: double")
    .Output("out: T")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    })
    .Doc("factor (scale v) for v = a if `first`, else b. Zeros where factor is 0, whatever the vectors hold.");
