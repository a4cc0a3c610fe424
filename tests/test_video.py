"""predict.py on videos: as long and as fast as what came in, upright, and playable whatever happens."""

import signal
import sys
from fractions import Fraction

import numpy as np
import pytest
from conftest import one_line_error, picture, save
from PIL import Image

from datasets import video as videos
from datasets.labels import CITYSCAPES
from datasets.pictures import beside, legend, overlay
from datasets.video import frames_below, video_file
from models.runtime import OnnxNetwork
from training.video import segment_video
from utils import interruption

av = pytest.importorskip("av")
RED, BLUE = (200, 40, 40), (40, 40, 200)


def frame(number, size=(50, 33)):
    """Red above blue, brighter with every frame, and a white corner at the top left."""
    width, height = size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[: height // 2], pixels[height // 2 :] = RED, BLUE
    pixels[:8, :8] = 255
    return (pixels * ((20 + number) / 40)).astype(np.uint8)


def write(path, codec="ffv1", pixel="bgr0", count=12, size=(50, 33), rate=25, rotation=None, ticks=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixel
        stream.codec_context.gop_size = 1
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(count):
            one = av.VideoFrame.from_ndarray(frame(number, size), format="rgb24").reformat(format=pixel)
            if ticks is not None:
                one.pts, one.time_base = ticks[number], Fraction(1, 1000)
            container.mux(stream.encode(one))
        container.mux(stream.encode(None))
    return path


def read(path):
    """[(seconds, pixels)], and the file's rate."""
    video = video_file(path)
    return list(video.frames()), video.rate


class Stub:
    """A network that sees the road everywhere."""

    seconds = 0.0

    def __call__(self, image):
        self.seconds += 0.01
        return np.zeros(image.shape[-2:], dtype=np.uint8)


def segmented(source, out, **options):
    return segment_video(source, out, Stub(), CITYSCAPES, options.pop("draw", overlay), **options)


def test_a_video_comes_out_as_long_and_as_fast_over_a_legend_that_stands_still(predicted, tmp_path):
    write(tmp_path / "drive.mkv")
    done = predicted(tmp_path / "drive.mkv")
    assert done.status == 0, done.err
    assert "12 frames, frames a second: network " in done.out
    found, rate = read(tmp_path / "out/drive_overlay.mp4")
    assert (rate, [at for at, _ in found]) == (25, [Fraction(n, 25) for n in range(12)])
    key = legend(range(19), CITYSCAPES, 240)
    assert all(pixels.shape == ((33 + len(key) + 1) // 2 * 2, 240, 3) for _, pixels in found)
    drawn = np.stack([pixels[36:] for _, pixels in found]).astype(int)
    assert np.abs(drawn - drawn[0]).mean(axis=(1, 2, 3)).max() < 2  # all 19 names, in every frame; the codec's noise
    assert np.abs(drawn[0, : len(key) - 3] - key[3:]).mean() < 8
    save(tmp_path / "five.png", frame(5))
    assert predicted(tmp_path / "five.png").status == 0
    single = np.array(Image.open(tmp_path / "out/five_overlay.png"))[:33, :50].astype(int)
    assert np.abs(single - found[5][1][:33, :50])[2:30, 10:48].mean() < 8


@pytest.mark.parametrize(
    ("name", "codec", "pixel", "size"),
    [("a.mp4", "libx264", "yuv420p", (64, 48)), ("a.mov", "libx264", "yuv420p", (64, 48)),
     ("a.mkv", "libx264", "yuv444p", (65, 47)), ("a.avi", "mpeg4", "yuv420p", (64, 48)),
     ("a.webm", "libvpx-vp9", "yuv420p", (64, 48))],
)  # fmt: skip
def test_common_containers(name, codec, pixel, size, tmp_path):
    source = video_file(write(tmp_path / name, codec, pixel, size=size, count=6, rate=Fraction(30000, 1001)))
    assert source.total == 6
    assert segmented(source, tmp_path / "out.mp4", draw=beside).frames == 6
    found, rate = read(tmp_path / "out.mp4")
    assert float(rate) == pytest.approx(30000 / 1001, rel=1e-4)  # mkv and webm hold times in milliseconds
    assert found[-1][0] == pytest.approx(5 * 1001 / 30000, abs=1e-4)
    assert len(found) == 6
    width, height = size
    assert np.abs(found[3][1][:height, :width].astype(int) - frame(3, size))[10:-10, 10:-10].mean() < 8
    assert np.abs(found[3][1][4:40, width + 4 : 2 * width - 4] - np.array(CITYSCAPES.colours[0])).mean() < 8


def test_variable_rates_keep_their_times(tmp_path):
    ticks = [0, 40, 200, 210, 600, 640]
    source = write(tmp_path / "v.mkv", count=6, ticks=ticks)
    assert segmented(video_file(source), tmp_path / "out.mp4").frames == 6
    assert [round(1000 * at) for at, _ in read(tmp_path / "out.mp4")[0]] == ticks
    assert segmented(video_file(source), tmp_path / "two.mp4", every=2).frames == 3
    assert [round(1000 * at) for at, _ in read(tmp_path / "two.mp4")[0]] == ticks[::2]
    assert segmented(video_file(source), tmp_path / "most.mp4", most=2).frames == 2


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_a_camera_that_was_turned(rotation, turns, tmp_path):
    """As phones write it: the display matrix turns what the sensor saw."""
    probe = av.open(str(write(tmp_path / "plain.mp4", "libx264", "yuv420p", size=(64, 48))), "r").streams.video[0]
    if not hasattr(probe, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    path = write(tmp_path / "turned.mp4", "libx264", "yuv420p", size=(64, 48), rotation=rotation)
    found, _ = read(path)
    assert np.abs(found[4][1].astype(int) - np.rot90(frame(4, (64, 48)), turns)).mean() < 8


def test_damaged_frames_are_left_out_and_counted(predicted, tmp_path):
    source = write(tmp_path / "drive.mp4", "libx264", "yuv420p", size=(64, 48))
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][5]
        start, size = packet.pos, packet.size
    content = bytearray(source.read_bytes())
    content[start + 20 : start + size] = bytes(size - 20)
    source.write_bytes(content)
    done = predicted(source)
    assert done.status == 0, done.err
    assert "1 damaged frames left out" in done.out
    found, _ = read(tmp_path / "out/drive_overlay.mp4")
    assert [at * 25 for at, _ in found] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]

    cut = tmp_path / "cut.mkv"
    whole = write(tmp_path / "whole.mkv").read_bytes()
    cut.write_bytes(whole[: 2 * len(whole) // 3])
    done = predicted(cut)
    assert done.status == 0, done.err
    assert "is it cut short?" in done.out
    assert 4 <= len(read(tmp_path / "out/cut_overlay.mp4")[0]) < 12

    cut = tmp_path / "short.mp4"  # its index stands at the end
    cut.write_bytes(write(tmp_path / "whole.mp4", "libx264", "yuv420p", size=(64, 48)).read_bytes()[:900])
    assert "short.mp4: cannot be opened" in one_line_error(predicted(cut))
    assert not (tmp_path / "out/short_overlay.mp4").exists()


def test_a_folder_of_frames_in_order(predicted, tmp_path):
    for number in range(12):
        save(tmp_path / f"drive/f{number}.png", frame(number))
    save(tmp_path / "drive/f7.png", frame(7).repeat(2, axis=0).repeat(2, axis=1))  # of another size
    (tmp_path / "drive/f3.png").write_bytes(b"\x89PNG")
    video = frames_below(tmp_path / "drive", Fraction(10))
    means = [(at, pixels.mean()) for at, pixels in video.frames()]
    assert [10 * at for at, _ in means] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert means == sorted(means, key=lambda one: one[1])
    assert (video.total, video.damaged) == (12, 1)
    done = predicted(tmp_path / "drive", "--fps", "10", "--side-by-side")
    assert done.status == 0, done.err
    found, _ = read(tmp_path / "out/drive_side-by-side.mp4")
    assert len(found) == 11
    assert found[-1][0] == Fraction(11, 10)
    assert "f3.png" in done.out
    assert predicted(tmp_path / "drive").status == 2  # as pictures, one of which is damaged


def test_an_interrupted_video_plays(tmp_path, monkeypatch):
    source = video_file(write(tmp_path / "v.mkv"))
    monkeypatch.setattr(interruption, "_received", [])
    before = signal.getsignal(signal.SIGINT)

    class Interrupted(Stub):
        def __call__(self, image):
            if source.seen == 5:
                signal.raise_signal(signal.SIGINT)
            return super().__call__(image)

    done = segment_video(source, tmp_path / "out.mp4", Interrupted(), CITYSCAPES, overlay)
    assert (done.frames, done.stop.status) == (5, 130)
    assert len(read(tmp_path / "out.mp4")[0]) == 5
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert signal.getsignal(signal.SIGINT) == before


def test_an_error_leaves_nothing(tmp_path):
    class Broken(Stub):
        def __call__(self, image):
            if source.seen == 3:
                raise ZeroDivisionError
            return super().__call__(image)

    source = video_file(write(tmp_path / "v.mkv"))
    with pytest.raises(ZeroDivisionError):
        segment_video(source, tmp_path / "out.mp4", Broken(), CITYSCAPES, overlay)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mkv"]


@pytest.mark.slow
def test_mistakes_are_one_line(predicted, script, checkpoint, tmp_path, monkeypatch):
    source = write(tmp_path / "v.mkv", count=2)
    save(tmp_path / "x.png", picture(1))
    for flags, said in (
        ((source, "--every", 0), "expected a whole number of at least 1"),
        ((source, "--confidence"), "are for pictures"),
        ((tmp_path / "x.png", "--frames", 3), "none is named"),
        ((source, "--fps", 25), "is no folder"),
        ((), "name pictures, videos or folders, or --camera N"),
        (("--camera", 0, "--fps", 5), "a camera has its own rate"),
        (("--camera", 77), "camera 77: cannot be opened"),
    ):
        assert said in one_line_error(predicted(*flags))
    (tmp_path / "text.mp4").write_text("no video")
    assert "text.mp4: cannot be opened" in one_line_error(predicted(tmp_path / "text.mp4"))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert predicted(source).status == 0
    assert "--force replaces it" in one_line_error(predicted(source))
    assert predicted(source, "--force").status == 0
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install av" in one_line_error(predicted(source, "--force"))
    assert predicted(tmp_path / "x.png").status == 0  # pictures need no PyAV
    monkeypatch.delitem(sys.modules, "av")
    monkeypatch.setattr(videos.sys, "platform", "plan9")
    assert "cameras are read on linux and darwin only" in one_line_error(predicted("--camera", 0))


@pytest.mark.slow
def test_an_exported_file_gives_what_onnx_runtime_gives(script, checkpoint, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    assert script("export", checkpoint, "--out", tmp_path / "exported").status == 0
    file = tmp_path / "exported/network.onnx"
    write(tmp_path / "v.mkv", size=(48, 32), count=3)
    save(tmp_path / "x.png", picture(1))
    done = script("predict", file, tmp_path / "v.mkv", tmp_path / "x.png", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert len(read(tmp_path / "out/v_overlay.mp4")[0]) == 3
    found = np.array(Image.open(tmp_path / "out/x_labelTrainIds.png"))
    assert (found == OnnxNetwork(file)(picture(1)[None])[0]).all()
    more = ("--force", "--out", tmp_path / "out")
    assert "exported file gives classes" in one_line_error(script("predict", file, tmp_path / "x.png", "--cam", "car"))
    assert "no network that export.py wrote" in one_line_error(
        script("predict", checkpoint, tmp_path / "x.png", "--runtime", "onnx", *more)
    )
    said = one_line_error(script("predict", file, tmp_path / "x.png", "--runtime", "torch", *more))
    assert "name the run that it was made from" in said
