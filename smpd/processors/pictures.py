"""Images in and out, for all image processors: Pillow decodes and encodes on the host, everything between is tensors.

Metadata (EXIF, colour profile, comments) is dropped on the way, apart from the EXIF orientation, which is applied.
"""

import dataclasses
import io
import warnings
from typing import TYPE_CHECKING, Any

import torch

from smpd.processors.api import Item, Refused
from smpd.processors.host import host_bytes

if TYPE_CHECKING:
    from PIL import Image

PIXELS_MAX = 1 << 28
# Decoders that are self-contained and much used; not EPS, which starts another program.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DIRECT = {"L", "RGB", "RGBA", "I;16", "I;16B"}
_CONVERTED = {"1": "L", "P": "RGBA", "PA": "RGBA", "LA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB"}
_CONVERTED |= {"HSV": "RGB", "RGBX": "RGB", "I;16L": "I;16"}
_DEEP = {"I;16", "I;16B"}
_PHOTOMETRIC = 262  # the TIFF tag of what a sample means
_WHITE_IS_ZERO = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image on the device.

    Attributes:
        pixels: float32 in 0 … 1, shape ``(1, C, H, W)``, C of 1 or 3; premultiplied where there is ``alpha``.
        alpha: float32 in 0 … 1, shape ``(1, 1, H, W)``, or None.
        deep: whether the source had 16 bits a sample; kept for gray.
    """

    pixels: torch.Tensor
    alpha: torch.Tensor | None
    deep: bool

    def gray(self) -> torch.Tensor:
        """Luma (ITU-R BT.601) over black, shape ``(1, 1, H, W)``."""
        if self.pixels.shape[1] == 1:
            return self.pixels
        weights = torch.tensor([0.299, 0.587, 0.114], device=self.pixels.device).view(1, 3, 1, 1)
        return (self.pixels * weights).sum(dim=1, keepdim=True)


def decode(item: Item) -> Picture:
    """Decode an entry.

    Raises:
        Refused: not an image of a known format, damaged, too large, or more than one frame.
    """
    pillow = _pillow()
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            pillow.open(io.BytesIO(host_bytes(item.data)), formats=FORMATS) as image,
        ):
            _check(image)
            image.load()
            # Pillow inverts 8 bits itself. It is asked here, as the upright picture has no tags.
            negative = image.mode in _DEEP and _is_white_zero(image)
            return _to_picture(_upright(image), item.data.device, negative=negative)
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise OSError, SyntaxError, ValueError, struct.error and their own
        raise Refused(f"the entry cannot be decoded as an image ({type(error).__name__})") from None


def encode_png(tensor: torch.Tensor) -> bytes:
    """PNG of a uint8 tensor ``(H, W)`` or ``(C, H, W)``, C of 1, 3 or 4, or a uint16 tensor ``(H, W)``.

    Raises:
        ValueError: of another type or shape; the text goes on from "result 1".
    """
    pillow = _pillow()
    planes = tensor.unsqueeze(0) if tensor.ndim == 2 else tensor
    deep = tensor.dtype == torch.uint16
    fits = planes.ndim == 3 and planes.shape[0] in _MODES and planes.numel() > 0
    if not fits or (deep and planes.shape[0] != 1) or not (deep or tensor.dtype == torch.uint8):
        raise ValueError(f"is a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}, which is no PNG")
    interleaved = planes.permute(1, 2, 0).contiguous().cpu()
    size = (planes.shape[2], planes.shape[1])
    mode = "I;16" if deep else _MODES[planes.shape[0]]
    image = pillow.frombytes(mode, size, bytes(host_bytes(interleaved.reshape(-1).view(torch.uint8))))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def encode(picture: Picture) -> torch.Tensor:
    """The tensor of a picture that becomes a PNG: alpha is divided out again, 16-bit gray stays 16 bits."""
    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = torch.cat([pixels / picture.alpha.clamp(min=1e-6), picture.alpha], dim=1)
    deep = picture.deep and pixels.shape[1] == 1
    scaled = (pixels[0].clamp(0, 1) * (65535 if deep else 255)).round()
    return scaled[0].to(torch.int32).to(torch.uint16) if deep else scaled.to(torch.uint8)


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 - an extra; who has no images needs none
    except ImportError:
        raise Refused("images need Pillow and kornia: pip install 'smp[images]'") from None
    Image.MAX_IMAGE_PIXELS = PIXELS_MAX
    return Image


def _check(image: "Image.Image") -> None:
    if image.width * image.height > PIXELS_MAX:
        raise Refused(f"the image has {image.width} x {image.height} pixels, more than {PIXELS_MAX}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise Refused(f"the image has {frames} frames, and image processors take one")
    if image.mode not in _DIRECT and image.mode not in _CONVERTED:
        raise Refused(f"the image has pixels of mode {image.mode}, which is not supported")


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps  # noqa: PLC0415 - as in _pillow

    return ImageOps.exif_transpose(image)


def _is_white_zero(image: "Image.Image") -> bool:
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    return bool(tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def _to_picture(image: "Image.Image", device: torch.device, *, negative: bool) -> Picture:
    if image.mode in {"L", "RGB"} and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in _CONVERTED:
        opaque = image.mode == "P" and "transparency" not in image.info
        image = image.convert("RGB" if opaque else _CONVERTED[image.mode])
    deep = image.mode in _DEEP
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).to(device)
    if deep:
        halves = raw.view(image.height, image.width, 2).to(torch.float32)
        # Not converted by Pillow, which clips big-endian samples to 8 bits.
        low, high = (1, 0) if image.mode == "I;16B" else (0, 1)
        samples = (halves[..., low] + halves[..., high] * 256).unsqueeze(-1) / 65535
        samples = 1 - samples if negative else samples
    else:
        samples = raw.view(image.height, image.width, -1).to(torch.float32) / 255
    planes = samples.permute(2, 0, 1).unsqueeze(0)
    if planes.shape[1] < 4:
        return Picture(planes.contiguous(), None, deep)
    alpha = planes[:, 3:].contiguous()
    return Picture(planes[:, :3] * alpha, alpha, deep)
