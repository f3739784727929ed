"""The image processors. Each takes one image and returns a PNG of it; see ``pictures`` for what goes in and out."""

import math
from types import ModuleType
from typing import Annotated, Literal

import msgspec
import torch
from torch.nn import functional

from smpd.processors import pictures
from smpd.processors.api import Context, Item, Output, Refused, processor
from smpd.processors.pictures import Picture

SIDE_MAX = 1 << 15
_CANNY_LEAST = 3  # kornia's blur mirrors two pixels at each border

Side = Annotated[int, msgspec.Meta(ge=1, le=SIDE_MAX)]
Sigma = Annotated[float, msgspec.Meta(gt=0, le=100, description="standard deviation of the Gaussian, in pixels")]
Threshold = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Resize(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of ``image.resize``: ``scale``, or ``width`` or ``height`` or both."""

    width: Side | None = None
    height: Side | None = None
    scale: Annotated[float, msgspec.Meta(gt=0, le=64)] | None = None
    keep_aspect: bool = True
    antialias: bool = True

    def __post_init__(self) -> None:
        if (self.scale is None) == (self.width is None and self.height is None):
            raise ValueError("give either scale, or width or height or both")


class Blur(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of ``image.blur``."""

    sigma: Sigma = 1.0


class Sharpen(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of ``image.sharpen``."""

    sigma: Sigma = 1.0
    amount: Annotated[float, msgspec.Meta(ge=0, le=10, description="how much of the difference is added")] = 1.0


class Edges(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of ``image.edges``; the thresholds are of ``canny``."""

    method: Literal["sobel", "canny"] = "sobel"
    low: Threshold = 0.1
    high: Threshold = 0.2

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is greater than high")


@processor("image.resize", accepts="image/*", params=Resize)
def resize(item: Item, context: Context[Resize]) -> Output:
    """Resize by bicubic interpolation, with antialiasing when it gets smaller.

    With width or height alone the other follows; with both, the image fits inside, or is stretched when
    ``keep_aspect`` is false.
    """
    picture = pictures.decode(item)
    size = target_size(context.params, *picture.pixels.shape[2:])

    # torch's own: kornia's resize blurs first, which no other program's result equals.
    def scaled(planes: torch.Tensor) -> torch.Tensor:
        antialias = context.params.antialias
        return functional.interpolate(planes, size, mode="bicubic", antialias=antialias).clamp(0, 1)

    alpha = None if picture.alpha is None else scaled(picture.alpha)
    return _png(item, Picture(scaled(picture.pixels), alpha, picture.deep))


@processor("image.blur", accepts="image/*", params=Blur)
def blur(item: Item, context: Context[Blur]) -> Output:
    """Gaussian blur."""
    picture = pictures.decode(item)
    alpha = None if picture.alpha is None else _gaussian(picture.alpha, context.params.sigma)
    return _png(item, Picture(_gaussian(picture.pixels, context.params.sigma), alpha, picture.deep))


@processor("image.sharpen", accepts="image/*", params=Sharpen)
def sharpen(item: Item, context: Context[Sharpen]) -> Output:
    """Unsharp mask: the image plus ``amount`` times its difference from its blurred self."""
    picture = pictures.decode(item)
    pixels = picture.pixels
    sharper = pixels + context.params.amount * (pixels - _gaussian(pixels, context.params.sigma))
    return _png(item, Picture(sharper, picture.alpha, picture.deep))


@processor("image.edges", accepts="image/*", params=Edges)
def edges(item: Item, context: Context[Edges]) -> Output:
    """Edges of the luma: the gradient's magnitude (Sobel), or thin lines (Canny)."""
    gray = pictures.decode(item).gray()
    if context.params.method == "sobel":
        found = _filters().sobel(gray)
    else:
        found = _canny(gray, context.params.low, context.params.high)
    return _png(item, Picture(found, None, False))


def target_size(params: Resize, height: int, width: int) -> tuple[int, int]:
    """The new height and width, each at least 1.

    Raises:
        Refused: a side would be longer than :data:`SIDE_MAX`.
    """
    across = (params.width or math.inf) / width
    down = (params.height or math.inf) / height
    if params.scale is None and params.width and params.height and not params.keep_aspect:
        return params.height, params.width
    factor = min(across, down) if params.scale is None else params.scale
    size = max(1, round(height * factor)), max(1, round(width * factor))
    if max(size) > SIDE_MAX:
        raise Refused(f"the result would be {size[1]} x {size[0]} pixels, and a side may have {SIDE_MAX}")
    return size


def _gaussian(planes: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur with a kernel of four standard deviations to each side, the border's pixels repeated."""
    side = 2 * math.ceil(4 * sigma) + 1
    blurred: torch.Tensor = _filters().gaussian_blur2d(planes, (side, side), (sigma, sigma), border_type="replicate")
    return blurred


def _canny(gray: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Thin lines; a picture of a side of two pixels or less has its border repeated, as the blur needs more."""
    height, width = gray.shape[2:]
    down, across = (_CANNY_LEAST - 1 if side < _CANNY_LEAST else 0 for side in (height, width))
    padded = functional.pad(gray, (across, across, down, down), mode="replicate")
    _, found = _filters().canny(padded, low, high)
    lines: torch.Tensor = found[..., down : down + height, across : across + width]
    return lines


def _filters() -> ModuleType:
    try:
        import kornia.filters  # noqa: PLC0415 - an extra; who has no images needs none
    except ImportError:
        raise Refused("images need Pillow and kornia: pip install 'smp[images]'") from None
    filters: ModuleType = kornia.filters
    return filters


def _png(item: Item, picture: Picture) -> Output:
    name = item.name if item.name.lower().endswith(".png") else f"{item.name}.png"
    return Output(name, pictures.encode(picture), "image/png")
