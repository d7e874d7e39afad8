import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from corrdream.artifacts import (
    MATCH_ZOOM,
    RunFolder,
    error_color,
    frame_pictures,
    match_sheet,
    preview_sheet,
    stack,
    strip,
    to_picture,
    write_json,
    write_picture,
    write_video,
)
from corrdream.structures import Matches, RenderOutput
from tests.sphere import camera_pairs, render_sphere


def sphere_views(size: int = 8) -> RenderOutput:
    return render_sphere(camera_pairs(2, size=size)[0], 0.5)


def matches(*rows: tuple[int, tuple[int, int], tuple[float, float]]) -> Matches:
    view, source, target = zip(*rows, strict=True)
    return Matches(
        view=torch.tensor(view),
        source_xy=torch.tensor(source),
        target_xy=torch.tensor(target),
        confidence=torch.ones(len(rows)),
        survives=torch.ones(len(rows), dtype=torch.bool),
    )


def test_colors_become_the_nearest_of_256_values() -> None:
    picture = to_picture(torch.tensor([[[0.0, 0.5, 1.0], [-1.0, 2.0, 1 / 255]]]))
    assert picture.tolist() == [[[0, 128, 255], [0, 255, 1]]]


def test_frames_show_color_normals_and_opacity_side_by_side() -> None:
    views = sphere_views()
    frame, _ = frame_pictures(views)
    assert frame.shape == (8, 24, 3)
    assert np.array_equal(frame[:, 16:, 0], to_picture(views.opacity[0][..., None].expand(-1, -1, 3))[..., 0])
    assert preview_sheet(views).shape == (16, 24, 3)


def test_strips_and_stacks_keep_the_order() -> None:
    first, second = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)
    assert strip([first, second])[0, :, 0].tolist() == [0, 0, 1, 1]
    assert stack([first, second])[:, 0, 0].tolist() == [0, 0, 1, 1]


def test_a_match_is_a_line_from_its_pixel_to_its_place_in_the_twin() -> None:
    black = torch.zeros(2, 8, 8, 3)
    sheet = match_sheet(black, black, matches((1, (2, 3), (5.5, 3.5))), torch.zeros(1))
    assert sheet.shape == (2 * 8 * MATCH_ZOOM, 2 * 8 * MATCH_ZOOM, 3)
    row, column = sheet.any(axis=2).nonzero()
    assert set(row) == {int(3.5 * MATCH_ZOOM) + 8 * MATCH_ZOOM}  # in the second view's row
    assert column.min() == 2.5 * MATCH_ZOOM
    assert column.max() == (8 + 5.5) * MATCH_ZOOM


def test_a_match_is_colored_by_its_error() -> None:
    assert error_color(0.0) == (0, 200, 0)
    assert error_color(2.0) == (255, 200, 0)
    assert error_color(99.0) == (255, 0, 0)
    black = torch.zeros(1, 8, 8, 3)
    sheet = match_sheet(black, black, matches((0, (2, 3), (5.5, 3.5))), torch.full((1,), 99.0))
    assert sheet[sheet.any(axis=2)].tolist()[0] == [255, 0, 0]


def test_views_without_matches_are_shown_as_they_are() -> None:
    images = torch.full((1, 4, 4, 3), 0.5)
    none = Matches(
        view=torch.zeros(0, dtype=torch.long),
        source_xy=torch.zeros(0, 2, dtype=torch.long),
        target_xy=torch.zeros(0, 2),
        confidence=torch.zeros(0),
        survives=torch.zeros(0, dtype=torch.bool),
    )
    assert (match_sheet(images, images, none, torch.zeros(0)) == 128).all()


def test_metrics_come_back_and_what_is_after_a_step_is_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_metrics() == []
    for step in range(1, 5):
        run.append_metrics({"step": float(step), "loss/total": 1 / step})
    run.trim_metrics(2)
    assert [row["step"] for row in run.read_metrics()] == [1, 2]


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1.0})
    with run.metrics.open("a") as file:
        file.write('{"step": 2')
    assert run.read_metrics() == [{"step": 1.0}]


@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO")  # imageio's reader leaves its pipes to the collector
def test_pictures_videos_and_json_are_written_whole(tmp_path: Path) -> None:
    picture = to_picture(torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0)))
    write_picture(tmp_path / "deep" / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")), picture)
    frames = [np.full((17, 19, 3), value, np.uint8) for value in (0, 120, 240)]
    write_video(tmp_path / "a.mp4", frames)
    film = imageio.imread(tmp_path / "a.mp4")
    assert film.shape == (3, 16, 18, 3)  # sides are even
    assert film.mean(axis=(1, 2, 3)) == pytest.approx([0, 120, 240], abs=6)
    write_json(tmp_path / "a.json", {"viou": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"viou": 0.5}
    assert not list(tmp_path.rglob(".*"))
