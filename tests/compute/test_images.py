"""The image processors through the real process, against Pillow, SciPy and scikit-image."""

import io
import struct
import zlib

import numpy as np
import pytest
from compute.harness import BUILT_IN, Entry, compute
from PIL import Image
from scipy import ndimage
from skimage import filters

from smp_proto.errors import ProcessorError, UsageError
from smpd.compute.loading import convert_params
from smpd.processors.images import Resize, resize, target_size


def _picture(mode, width=61, height=40):
    """A smooth picture with an edge, so that interpolation has something to get wrong."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(np.sin(x / (5 + k)) + np.cos(y / (7 - k)) + (x > 30)) / 3 for k in range(4)]
    planes = [(p - p.min()) / (p.max() - p.min()) for p in planes]
    if mode == "I;16":
        return Image.fromarray((planes[0] * 65535).astype(np.uint16))
    bands = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    samples = (np.stack(planes[:bands], axis=-1) * 255).astype(np.uint8)
    return Image.fromarray(samples[..., 0] if mode == "L" else samples, mode)


def _entry(image, kind="PNG", name="scan", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Entry(name, file.getvalue(), f"image/{kind.lower()}")


def _read(result):
    assert result.media_type == "image/png"
    return Image.open(io.BytesIO(result.data))


def _difference(ours, theirs):
    a, b = np.asarray(ours).astype(float), np.asarray(theirs).astype(float)
    assert a.shape == b.shape
    return np.abs(a - b).max()


async def test_resize_equals_pillow():
    """A resized picture is Pillow's own within one level, in gray, colour and (premultiplied) with alpha."""
    async with compute(*BUILT_IN, shared=True) as worker:
        for mode in ("L", "RGB", "RGBA"):
            source = _picture(mode)
            _, [result] = await worker.run("image.resize", [_entry(source)], width=23)
            reference = source.convert("RGBa") if mode == "RGBA" else source
            reference = reference.resize((23, 15), Image.Resampling.BICUBIC)
            ours, theirs = _read(result), reference.convert(mode)
            assert result.name == "scan.png"
            if mode == "RGBA":  # compare what is seen: where alpha is small, colour is arbitrary
                ours, theirs = (Image.alpha_composite(Image.new("RGBA", (23, 15)), one) for one in (ours, theirs))
                ours, theirs = ours.convert("RGBa"), theirs.convert("RGBa")
            assert _difference(ours, theirs) <= (3 if mode == "RGBA" else 1)
        _, [result] = await worker.run("image.resize", [_entry(_picture("RGB"))], scale=2.0)
        assert _difference(_read(result), _picture("RGB").resize((122, 80), Image.Resampling.BICUBIC)) <= 1


async def test_gray_of_sixteen_bits_keeps_its_depth():
    """A 16-bit gray picture stays one, to the last level where nothing changes."""
    source = _picture("I;16")
    async with compute(*BUILT_IN, shared=True) as worker:
        _, [result] = await worker.run("image.resize", [_entry(source)], scale=1.0)
        assert _read(result).mode == "I;16"
        assert _difference(_read(result), source) == 0


async def test_two_results_that_would_have_one_name():
    """It is the entries' names that clash, and is said of them, by number: no name is told, and no author to blame."""
    data = _entry(_picture("RGB")).data
    entries = [Entry("Doe", data, "image/png"), Entry("x", b"x"), Entry("Doe.png", data, "image/png")]
    async with compute(*BUILT_IN, shared=True) as worker:
        error = await worker.error("image.resize", entries, scale=1.0)
        assert error.code == "processor_output"
        assert "entries 1 and 3" in error.message
        assert "Doe" not in str(error.body())
        assert "author" not in error.hint
        assert "rename" in error.hint


def _tiff(values, order, photometric, *, deflate=False, orientation=1):
    """A TIFF of one strip, made by hand: Pillow writes no negative ones."""
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    strip = values.astype(values.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(strip) if deflate else strip
    tags = {256: width, 257: height, 258: bits, 259: 8 if deflate else 1, 262: photometric, 273: 8}
    tags |= {274: orientation, 277: 1, 278: height, 279: len(strip)}
    at = 8 + len(strip) + len(strip) % 2
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", at)
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    return head + strip.ljust(at - 8, b"\0") + struct.pack(order + "H", len(tags)) + entries + bytes(4)


async def test_gray_tiffs_of_either_byte_order_and_meaning():
    """Each sample of 16 bits is kept, whichever byte comes first; where white is 0, it comes out as white."""
    deep = np.array([[0, 1000, 40000], [65535, 2, 0x1234]], np.uint16)
    shallow = (deep >> 8).astype(np.uint8)
    kinds = [("<", 0, deep), ("<", 1, deep), (">", 1, deep)]
    kinds += [(order, photometric, shallow) for order in "<>" for photometric in (0, 1)]
    async with compute(*BUILT_IN, shared=True) as worker:

        async def read(data):
            _, [result] = await worker.run("image.resize", [Entry("scan", data, "image/tiff")], scale=1.0)
            return np.asarray(_read(result)).tolist()

        for order, photometric, values in kinds:
            seen = values if photometric else np.iinfo(values.dtype).max - values
            for deflate in (False, True):
                found = await read(_tiff(values, order, photometric, deflate=deflate))
                assert found == seen.tolist(), (order, photometric, values.dtype, deflate)
        assert await read(_tiff(deep, ">", 1, orientation=6)) == np.rot90(deep, -1).tolist()
        assert await read(_tiff(deep, "<", 0, orientation=6)) == np.rot90(65535 - deep, -1).tolist()
        # What Pillow does not read is said, never guessed.
        error = await worker.error("image.resize", [Entry("scan", _tiff(deep, ">", 0), "image/tiff")], scale=1.0)
        assert "cannot be decoded" in error.message


async def test_blur_and_sharpen_equal_scipy():
    """Blur is SciPy's Gaussian filter within one level, sharpening the unsharp mask made of it."""
    source = _picture("L")
    values = np.asarray(source).astype(float)
    smooth = ndimage.gaussian_filter(values, 2.5, mode="nearest", truncate=4.0)
    async with compute(*BUILT_IN, shared=True) as worker:
        _, [result] = await worker.run("image.blur", [_entry(source)], sigma=2.5)
        assert _difference(_read(result), np.round(smooth)) <= 1
        _, [result] = await worker.run("image.sharpen", [_entry(source)], sigma=2.5, amount=0.5)
        assert _difference(_read(result), np.round(np.clip(values + 0.5 * (values - smooth), 0, 255))) <= 1
        # A kernel wider than the picture.
        _, [result] = await worker.run("image.blur", [_entry(source)], sigma=40.0)
        assert _difference(_read(result), ndimage.gaussian_filter(values, 40, mode="nearest", truncate=4.0)) <= 1


async def test_edges_are_where_scikit_image_sees_them():
    """Sobel's magnitude is in proportion to scikit-image's; Canny's lines lie on the one step of the picture."""
    values = np.zeros((40, 60), np.uint8)
    values[10:30, 20:45] = 200
    source = Image.fromarray(values)
    reference = filters.sobel(values / 255)[1:-1, 1:-1]
    async with compute(*BUILT_IN, shared=True) as worker:
        _, [result] = await worker.run("image.edges", [_entry(source)])
        ours = np.asarray(_read(result)).astype(float)[1:-1, 1:-1]
        assert np.corrcoef(ours.ravel(), reference.ravel())[0, 1] > 0.999
        _, [result] = await worker.run("image.edges", [_entry(source)], method="canny")
        lines = np.asarray(_read(result)) > 0
        assert lines.sum() > 60
        near_step = ndimage.binary_dilation(reference > 0, iterations=2)
        assert not (lines[1:-1, 1:-1] & ~near_step).any()


async def test_edges_of_the_smallest_pictures():
    """A side of one pixel or two is no error: lines are where the picture has a step, and none where it has none."""
    async with compute(*BUILT_IN, shared=True) as worker:
        for shape in [(1, 1), (1, 9), (9, 1), (2, 2), (2, 20), (20, 2), (3, 3), (1, 300)]:
            for method in ("sobel", "canny"):
                flat = Image.fromarray(np.full(shape, 90, np.uint8))
                _, [result] = await worker.run("image.edges", [_entry(flat)], method=method)
                assert np.asarray(_read(result)).shape == shape
                assert not np.asarray(_read(result)).any(), (shape, method)
        step = np.zeros((2, 20), np.uint8)
        step[:, 10:] = 200
        for values in (step, step[:1], step.T):
            _, [result] = await worker.run("image.edges", [_entry(Image.fromarray(values))], method="canny")
            lines = np.asarray(_read(result)) > 0
            assert lines.any(), values.shape
            assert not lines[..., :8].any() if values.shape[1] == 20 else not lines[:8].any()


async def test_orientation_palette_and_names():
    """EXIF orientation is applied, palettes are looked up, and each entry gives one result; others are skipped."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: row 0 is the right side
    source = _picture("RGB")
    palette = source.quantize(16)
    entries = [
        _entry(source, exif=exif, name="turned.png"),
        Entry("notes.txt", b"not an image", "text/plain"),
        _entry(palette, "GIF", name="a/palette.gif"),
    ]
    async with compute(*BUILT_IN, shared=True) as worker:
        done, results = await worker.run("image.resize", entries, scale=1.0)
        assert (done.entries, [r.name for r in results]) == (2, ["turned.png", "a/palette.gif.png"])
        assert _difference(_read(results[0]), source.transpose(Image.Transpose.ROTATE_270)) <= 1
        assert _difference(_read(results[1]), palette.convert("RGB")) <= 1


async def test_what_cannot_be_decoded_is_said():
    """Damage, a bomb and an animation are refused by the entry's number, without its name or its bytes."""
    whole = _entry(_picture("RGB"))
    frames = [_picture("L"), _picture("L").point(lambda level: 255 - level)]
    animated = _entry(frames[0], "GIF", save_all=True, append_images=frames[1:])
    bomb = bytearray(whole.data)
    bomb[16:24] = (1 << 16).to_bytes(4, "big") * 2
    cases = [(whole.data[:200], "cannot be decoded"), (bytes(bomb), "decoded|pixels"), (animated.data, "2 frames")]
    cases.append((b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"))
    async with compute(*BUILT_IN, shared=True) as worker:
        for data, said in cases:
            entries = [whole, Entry("Doe^Jane", data, "image/x-any")]
            error = await worker.error("image.blur", entries)
            assert isinstance(error, ProcessorError)
            assert error.code == "processor_failed"
            assert "entry 2 of 2" in error.message
            assert any(word in error.message for word in said.split("|"))
            assert "Doe" not in str(error.body())
        error = await worker.error("image.blur", [Entry("t", b"", "text/plain")])
        assert (error.code, "image/*" in error.message) == ("processor_input", True)
        assert (await worker.run("image.blur", [whole]))[0].outputs == 1


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"widht": 5}, ("'widht'", "width")),
        ({"width": "5"}, ("parameter width", "expected `int | null`, got `str`")),
        ({"width": 0}, ("parameter width", ">= 1")),
        ({}, ("either scale, or width",)),
        ({"width": 5, "scale": 2.0}, ("either scale, or width",)),
    ],
)
async def test_wrong_parameters_are_named(params, said):
    """An unknown, mistyped, missing or contradictory parameter is refused with its name and what was wanted."""
    with pytest.raises(UsageError) as caught:
        convert_params(resize, params)
    assert caught.value.code == "bad_parameter"
    assert "image.resize" in caught.value.message
    assert all(word in caught.value.message + caught.value.hint for word in said)


def test_target_size_keeps_the_aspect():
    """One side follows the other, two make a box to fit into, and a stretched picture fills it."""
    assert target_size(Resize(width=50), 100, 200) == (25, 50)
    assert target_size(Resize(height=50), 100, 200) == (50, 100)
    assert target_size(Resize(width=50, height=50), 100, 200) == (25, 50)
    assert target_size(Resize(width=50, height=50, keep_aspect=False), 100, 200) == (50, 50)
    assert target_size(Resize(scale=0.001), 100, 200) == (1, 1)
