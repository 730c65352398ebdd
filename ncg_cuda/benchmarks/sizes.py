"""The sizes that are measured: flat vectors, and the 161 tensors of ResNet-50."""

from __future__ import annotations

from dataclasses import dataclass

from ..compare.errors import UsageError
from ..layout import Layout

DEFAULT = "1e5,1e6,25.6e6,resnet50,1e8"
QUICK = "1e5,resnet50-small"
LARGEST = 10**12
_BLOCKS = ((64, 3), (128, 4), (256, 6), (512, 3))  # ResNet-50's stages: width, blocks


def resnet50_shapes(width: int = 64, classes: int = 1000) -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's trainable tensors: convolutions without bias, batch normalizations, one dense layer.

    161 tensors and 25,557,032 weights at the standard ``width`` of 64 and 1000 ``classes``.
    He et al., "Deep residual learning for image recognition" (2016).
    """
    scale = width / 64
    shapes: list[tuple[int, ...]] = []

    def convolution(size: int, inputs: int, outputs: int) -> None:
        shapes.extend([(size, size, inputs, outputs), (outputs,), (outputs,)])  # with its normalization's two

    convolution(7, 3, width)
    inputs = width
    for base, blocks in _BLOCKS:
        inner = int(base * scale)
        for block in range(blocks):
            convolution(1, inputs, inner)
            convolution(3, inner, inner)
            convolution(1, inner, 4 * inner)
            if block == 0:
                convolution(1, inputs, 4 * inner)
            inputs = 4 * inner
    return [*shapes, (inputs, classes), (classes,)]


@dataclass(frozen=True)
class Size:
    """One size of the benchmark."""

    label: str
    n: int
    """Elements of a vector, the padding between tensors included."""
    layout: Layout | None = None
    """Where the product comes as tensors."""

    @property
    def tensors(self) -> int:
        """In how many pieces a product comes."""
        return 1 if self.layout is None else len(self.layout.shapes)

    @property
    def title(self) -> str:
        """For tables: ``n = 25,600,000, flat``."""
        how = "flat" if self.layout is None else f"{self.tensors} tensors ({self.label})"
        return f"n = {self.n:,} float32, {how}"


def parse(text: str) -> list[Size]:
    """The sizes that a comma-separated list names: numbers of elements, ``resnet50``, ``resnet50-small``.

    Raises:
        UsageError: a part is none of these.
    """
    sizes: list[Size] = []
    for part in (part.strip() for part in text.split(",")):
        if part in ("resnet50", "resnet50-small"):
            layout = Layout(resnet50_shapes() if part == "resnet50" else resnet50_shapes(width=4, classes=10))
            sizes.append(Size(part, layout.size, layout))
            continue
        try:
            value = float(part)
        except ValueError:
            value = 0.0
        if not (16 <= value <= LARGEST and value == int(value)):
            raise UsageError(
                f"--sizes: {part!r} is neither a whole number of elements from 16 to 1e12 (such as 25.6e6) nor "
                "resnet50 nor resnet50-small"
            )
        sizes.append(Size(part, int(value)))
    return list({size.label: size for size in sizes}.values())


def iterations_for(size: Size, on_gpu: bool) -> int:
    """How many iterations are timed at a size: more where one is short, fewer where products fill the memory, or where
    graphs of hundreds of tensors take long to build.
    """
    n = size.n
    if size.tensors > 1 and not on_gpu:
        return 4
    if n <= 2_000_000:
        return 12
    if on_gpu:
        return 12 if n <= 50_000_000 else 6
    return 4 if n <= 50_000_000 else 2
