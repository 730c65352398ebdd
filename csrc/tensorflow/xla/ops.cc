// The TensorFlow ops of a CG solve under XLA on the CPU: interfaces, shapes, and how each becomes a custom call of
// handlers.cc. They have kernels for XLA alone; ncg_cuda/tf/solver_xla.py uses them.
//
// As the ops of the same names in ../ops.cc, but a vector is a list of tensors, one per variable.
#include <string>
#include <utility>
#include <vector>

#include "ncg/state.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "xla/hlo/builder/xla_builder.h"
#include "xla/shape_util.h"

namespace ncg::xla_cpu {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::XlaOpKernel;
using tensorflow::XlaOpKernelContext;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Inputs [first, first + count) have the shapes of inputs [0, count).
absl::Status merge(InferenceContext* c, int first, int count) {
  for (int i = 0; i < count; ++i) {
    ShapeHandle merged;
    TF_RETURN_IF_ERROR(c->Merge(c->input(i), c->input(first + i), &merged));
  }
  return absl::OkStatus();
}

void set_like(InferenceContext* c, int output, int input, int count) {
  for (int i = 0; i < count; ++i) c->set_output(output + i, c->input(input + i));
}

}  // namespace

REGISTER_OP("NcgListCgBegin")
    .Input("b: N * T")
    .Input("tau: double")
    .Input("cg_tol: double")
    .Input("max_iter: int32")
    .Output("x: N * T")
    .Output("r: N * T")
    .Output("p: N * T")
    .Output("state: double")
    .Attr("N: int >= 1")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      const int count = c->num_inputs() - 3;
      for (int k = 0; k < 3; ++k) set_like(c, k * count, 0, count);
      c->set_output(3 * count, c->Vector(kStateSize));
      return absl::OkStatus();
    })
    .Doc("NcgCgBegin on one tensor per variable, under XLA.");

REGISTER_OP("NcgListCgIterate")
    .Input("hp: N * T")
    .Input("x: N * T")
    .Input("r: N * T")
    .Input("p: N * T")
    .Input("state: double")
    .Output("x_out: N * T")
    .Output("r_out: N * T")
    .Output("p_out: N * T")
    .Output("state_out: double")
    .Attr("N: int >= 1")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      const int count = (c->num_inputs() - 1) / 4;
      for (int k = 1; k < 4; ++k) TF_RETURN_IF_ERROR(merge(c, k * count, count));
      set_like(c, 0, count, 3 * count);
      c->set_output(3 * count, c->Vector(kStateSize));
      return absl::OkStatus();
    })
    .Doc("NcgCgIterate on one tensor per variable, under XLA.");

REGISTER_OP("NcgListCgFinish")
    .Input("x: N * T")
    .Input("r: N * T")
    .Input("p: N * T")
    .Input("state: double")
    .Output("x_out: N * T")
    .Output("state_out: double")
    .Attr("N: int >= 1")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      const int count = (c->num_inputs() - 1) / 3;
      for (int k = 1; k < 3; ++k) TF_RETURN_IF_ERROR(merge(c, k * count, count));
      set_like(c, 0, 0, count);
      c->set_output(count, c->Vector(kStateSize));
      return absl::OkStatus();
    })
    .Doc("NcgCgFinish on one tensor per variable, under XLA.");

REGISTER_OP("NcgListMagnitude")
    .Input("a: N * T")
    .Output("sum: double")
    .Attr("N: int >= 1")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      c->set_output(0, c->Scalar());
      return absl::OkStatus();
    })
    .Doc("NcgMagnitude on one tensor per variable, under XLA.");

REGISTER_OP("NcgListDots")
    .Input("a: N * T")
    .Input("b: N * T")
    .Input("scale_a: double")
    .Input("scale_b: double")
    .Output("sums: double")
    .Attr("N: int >= 1")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      const int count = (c->num_inputs() - 2) / 2;
      TF_RETURN_IF_ERROR(merge(c, count, count));
      c->set_output(0, c->Vector(3));
      return absl::OkStatus();
    })
    .Doc("NcgDots on one tensor per variable, under XLA.");

namespace {

// The results of a custom call: their shapes, and result i in the place of operand `in_place[i]` (as far as that goes).
struct Results {
  std::vector<xla::Shape> shapes;
  std::vector<int> in_place;

  void add(xla::PrimitiveType type, absl::Span<const std::int64_t> dimensions) {
    shapes.push_back(xla::ShapeUtil::MakeShapeWithDescendingLayout(type, dimensions));
  }
};

class ListOp : public XlaOpKernel {
 public:
  explicit ListOp(OpKernelConstruction* ctx) : XlaOpKernel(ctx) { OP_REQUIRES_OK(ctx, ctx->GetAttr("N", &count)); }

  void Compile(XlaOpKernelContext* ctx) override {
    std::vector<xla::XlaOp> operands;
    std::vector<xla::Shape> shapes;  // with the layout that the handlers, which see memory only, count on
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      const absl::StatusOr<xla::Shape> shape = ctx->InputXlaShape(i);
      OP_REQUIRES_OK(ctx, shape.status());
      operands.push_back(ctx->Input(i));
      shapes.push_back(xla::ShapeUtil::MakeShapeWithDescendingLayout(shape->element_type(), shape->dimensions()));
    }
    Results out;
    describe(shapes, &out);
    std::vector<std::pair<xla::ShapeIndex, std::pair<std::int64_t, xla::ShapeIndex>>> aliasing;
    for (std::size_t i = 0; i < out.in_place.size(); ++i) {
      aliasing.push_back({{static_cast<std::int64_t>(i)}, {out.in_place[i], {}}});
    }
    const bool one = out.shapes.size() == 1;
    const xla::XlaOp call = xla::CustomCallWithLayout(
        ctx->builder(), handler(), operands, one ? out.shapes[0] : xla::ShapeUtil::MakeTupleShape(out.shapes), shapes,
        /*opaque=*/"", /*has_side_effect=*/false, aliasing, /*literal=*/nullptr, xla::CustomCallSchedule::SCHEDULE_NONE,
        xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
    for (int i = 0; i < static_cast<int>(out.shapes.size()); ++i) {
      ctx->SetOutput(i, one ? call : xla::GetTupleElement(call, i));
    }
  }

 protected:
  virtual std::string handler() const = 0;
  virtual void describe(const std::vector<xla::Shape>& operands, Results* out) const = 0;

  // Results like operands [first, first + n), in their place.
  static void add_in_place(const std::vector<xla::Shape>& operands, int first, int n, Results* out) {
    for (int i = first; i < first + n; ++i) {
      out->shapes.push_back(operands[static_cast<std::size_t>(i)]);
      out->in_place.push_back(i);
    }
  }

  int count = 0;  // tensors of a list
};

struct BeginOp : ListOp {
  using ListOp::ListOp;
  std::string handler() const override { return "ncg_list_cg_begin"; }
  void describe(const std::vector<xla::Shape>& operands, Results* out) const override {
    for (int k = 0; k < 3; ++k) out->shapes.insert(out->shapes.end(), operands.begin(), operands.begin() + count);
    out->add(xla::F64, {kStateSize});
  }
};

struct IterateOp : ListOp {
  using ListOp::ListOp;
  std::string handler() const override { return "ncg_list_cg_iterate"; }
  void describe(const std::vector<xla::Shape>& operands, Results* out) const override {
    add_in_place(operands, count, 3 * count + 1, out);
  }
};

struct FinishOp : ListOp {
  using ListOp::ListOp;
  std::string handler() const override { return "ncg_list_cg_finish"; }
  void describe(const std::vector<xla::Shape>& operands, Results* out) const override {
    add_in_place(operands, 0, count, out);
    add_in_place(operands, 3 * count, 1, out);
  }
};

struct MagnitudeOp : ListOp {
  using ListOp::ListOp;
  std::string handler() const override { return "ncg_list_magnitude"; }
  void describe(const std::vector<xla::Shape>&, Results* out) const override { out->add(xla::F64, {}); }
};

struct DotsOp : ListOp {
  using ListOp::ListOp;
  std::string handler() const override { return "ncg_list_dots"; }
  void describe(const std::vector<xla::Shape>&, Results* out) const override { out->add(xla::F64, {3}); }
};

// As kernels of XLA's compilation device. REGISTER_XLA_OP would do the same, but for no library that is loaded after
// the first function has been compiled.
REGISTER_KERNEL_BUILDER(Name("NcgListCgBegin").Device(tensorflow::DEVICE_CPU_XLA_JIT), BeginOp);
REGISTER_KERNEL_BUILDER(Name("NcgListCgIterate").Device(tensorflow::DEVICE_CPU_XLA_JIT), IterateOp);
REGISTER_KERNEL_BUILDER(Name("NcgListCgFinish").Device(tensorflow::DEVICE_CPU_XLA_JIT), FinishOp);
REGISTER_KERNEL_BUILDER(Name("NcgListMagnitude").Device(tensorflow::DEVICE_CPU_XLA_JIT), MagnitudeOp);
REGISTER_KERNEL_BUILDER(Name("NcgListDots").Device(tensorflow::DEVICE_CPU_XLA_JIT), DotsOp);

}  // namespace
}  // namespace ncg::xla_cpu
