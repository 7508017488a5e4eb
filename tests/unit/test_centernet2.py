"""CenterNet2 with the heads of Detic: what its parts are trained on, its masks, its weights, and a short training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark import cli, mrb
from maskrcnn_benchmark.checkpoint.io import load_weights, save_weights
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import CENTERNET2, RELEASED
from maskrcnn_benchmark.checkpoint.start import start_from
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.modeling.assign.centernet import Cells, CenterAssigner
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.criterion.cascade import WEIGHED, CascadeCriterion, ImageLabels
from maskrcnn_benchmark.modeling.criterion.centernet import box_loss
from maskrcnn_benchmark.modeling.criterion.weak import SELECT
from maskrcnn_benchmark.modeling.detectors.centernet2 import CenterNet2
from maskrcnn_benchmark.modeling.heads.region_masks import paste
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target, TextBatch
from maskrcnn_benchmark.structures.polygons import draw_in_box, move
from maskrcnn_benchmark.text.class_bank import ClassBank, write_bank
from tests.narrow_centernet2 import CONFIG, SmallCenterNet2, make_small_centernet2, options
from tests.training_runs import rows

META = ImageMeta(1, (96, 128), (192, 256))
SIZES, STRIDES = ((16, 16), (8, 8)), (8, 16)
ASSIGN = CenterAssigner(ranges=((0, 40), (30, 100)))
TRAINING = {f"{name}_stage{stage}" for name in ("loss_cls", "loss_box_reg") for stage in range(3)}


def cells() -> Cells:
    return Cells.of(SIZES, STRIDES, torch.device("cpu"))


def test_targets_of_cells_lead_back_to_the_object() -> None:
    box = torch.tensor([[20.0, 30.0, 60.0, 62.0]])  # half its diagonal is 25.6: of the finer level alone
    grid = cells()
    targets = ASSIGN(grid, box)
    assert targets.peaks.tolist() == [5 * 16 + 5]  # its centre is in column 40 // 8, row 46 // 8
    assert targets.heat[targets.peaks] == 1
    places, strides = grid.locations[targets.cells], grid.strides[targets.cells, None]
    assert set(strides.flatten().tolist()) == {8}
    assert len(places) == 9
    assert torch.cat((places - targets.boxes[:, :2] * strides, places + targets.boxes[:, 2:] * strides), 1).allclose(
        box
    )
    assert targets.heat.max() == 1
    assert targets.heat[0] == 0


def test_an_object_of_two_levels_has_a_peak_on_both_and_an_empty_picture_none() -> None:
    twice = ASSIGN(cells(), torch.tensor([[20.0, 20.0, 70.0, 70.0]]))  # 35.4
    assert len(twice.peaks) == 2
    nothing = ASSIGN(cells(), torch.zeros(0, 4))
    assert nothing.heat.sum() == 0
    assert len(nothing.peaks) == len(nothing.cells) == 0


def test_the_loss_of_a_box_is_zero_where_it_is_right() -> None:
    right = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert box_loss(right, right).item() == pytest.approx(0, abs=1e-6)
    assert box_loss(right * 2, right) > 0.5


def test_background_takes_the_place_of_a_class() -> None:
    criterion = CascadeCriterion((), classes=5)
    chance = torch.tensor([1.0] * 20 + [0.0] * 10)
    for labels in ([0, 0, 25, 3], [25, 3, 3]):
        chosen = criterion.columns(torch.tensor(labels), chance, Random(0)).tolist()
        assert set(chosen) >= {24, 2}
        assert len(set(chosen)) == len(chosen) == 5 - labels.count(0) // 2
        assert all(number < 20 or number == 24 for number in chosen)


def labelled(*labels: int) -> Target:
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), META, image_labels=torch.tensor(labels))


def test_the_largest_proposal_is_not_the_last_one() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 50, 50], [0, 0, 90, 90]])
    logits = torch.zeros(3, 5, requires_grad=True)
    ImageLabels(loss="max_size")([logits], [boxes], [labelled(2)], ()).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).nonzero().flatten().tolist() == [1]
    assert (logits.grad[1] < 0).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("name", [*SELECT, WEIGHED])
def test_every_image_label_loss_teaches_the_label(name: str) -> None:
    torch.manual_seed(0)
    logits, weights = torch.zeros(4, 6, requires_grad=True), torch.randn(4, 6)
    rule = ImageLabels(loss=name)
    total = rule([logits, logits[:0]], [torch.rand(4, 4), torch.zeros(0, 4)], [labelled(3), labelled(1)], [weights] * 2)
    total.backward()
    assert logits.grad is not None
    assert logits.grad.sum(0)[2] < 0
    assert (logits.grad.sum(0)[[0, 1, 3, 4, 5]] >= 0).all()


def test_proposals_for_image_labels_are_clipped_and_may_have_the_picture_among_them() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 500.0, 20.0], [1, 1, 2, 2], [3, 3, 4, 4]])
    chosen = ImageLabels(proposals=2, picture_box=0.5).choose(boxes, (96, 128))
    assert chosen.tolist() == [[0, 0, 128, 20], [1, 1, 2, 2], [32, 24, 96, 72]]


def test_outlines_move_with_their_picture_and_are_drawn_in_a_box() -> None:
    square = np.array([10.0, 10, 30, 10, 30, 30, 10, 30])
    mirrored = move(((square,),), (-1, 1), (100, 0))[0][0]
    assert mirrored.reshape(-1, 2).min(0).tolist() == [70, 10]
    assert draw_in_box((square,), np.array([10.0, 10, 30, 30]), 28).all()
    assert draw_in_box((square,), np.array([10.0, 10, 50, 30]), 28)[:, :14].all()
    assert not draw_in_box((square,), np.array([10.0, 10, 50, 30]), 28)[:, 14:].any()
    assert not draw_in_box((), np.array([0.0, 0, 5, 5]), 28).any()
    target = Target(torch.zeros(2, 4), torch.ones(2, dtype=torch.int64), META, polygons=((square,), (square, square)))
    assert [len(outline) for outline in target[torch.tensor([False, True])].polygons or ()] == [2]


def test_a_mask_is_pasted_where_its_box_is() -> None:
    masks, boxes = torch.ones(2, 28, 28), torch.tensor([[2.0, 3.0, 12.0, 9.0], [-4.0, 5.0, 300.0, 40.0]])
    masks[1, :14] = 0.2
    first, second = paste(masks, boxes, (30, 20))
    assert first.sum() == 60
    assert first[3:9, 2:12].all()
    assert not second[:22].any()
    assert second[23:30].all()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCenterNet2:
    return make_small_centernet2(tmp_path_factory.mktemp("centernet2"))


@pytest.fixture(scope="module")
def detector(small: SmallCenterNet2) -> CenterNet2:
    torch.manual_seed(0)
    found = build_detector(load_cfg(CONFIG, opts=options(small.narrow.folder)))
    assert isinstance(found, CenterNet2)
    return found


def pictures(count: int) -> ImageBatch:
    pixels = torch.rand(count, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    return ImageBatch(pixels, (META,) * count)


def test_detections_are_of_the_picture_on_disk_and_have_masks(detector: CenterNet2) -> None:
    with torch.no_grad():
        one, two = detector.detect(detector.encode_image(pictures(2)))
    assert 0 < len(one) <= 20
    assert one.masks is not None
    assert one.masks.shape == (len(one), 192, 256)
    assert (one.boxes >= 0).all()
    assert (one.boxes <= torch.tensor([256, 192, 256, 192])).all()
    assert ((one.labels >= 1) & (one.labels <= len(CLASSES))).all()
    assert len(two) > 0


def test_other_names_take_the_place_of_its_classes(detector: CenterNet2) -> None:
    """The same embeddings in another order find the same boxes; labels are those that were asked for."""
    detector.eval()
    names = {7: CLASSES[2], 9: CLASSES[0]}
    with torch.no_grad():
        state = detector.encode_image(pictures(1))
        (own,) = detector.detect(state)
        everything = TextBatch.of_classes(dict(enumerate(CLASSES, 1)))
        (asked,) = detector.detect(state, detector.encode_text(everything))
        rows = torch.zeros(9, 16)
        rows[6], rows[8] = 3 * detector.table[2], 5 * detector.table[0]  # of any length
        (some,) = detector.detect(state, detector.encode_embeddings(TextBatch.of_classes(names), rows))
        assert len(detector.detect(state, detector.encode_text(TextBatch.of_classes({})))[0]) == 0
    torch.testing.assert_close(asked.boxes, own.boxes)
    assert torch.equal(asked.labels, own.labels)
    assert set(some.labels.tolist()) <= {7, 9}
    assert len(some) > 0
    assert all(some.name(i) == names[int(some.labels[i])] for i in range(len(some)))
    best = own.labels == 1
    torch.testing.assert_close(some.scores[some.labels == 9][: int(best.sum())], own.scores[best])


def test_pictures_are_labelled_with_names_that_it_was_not_trained_on(
    small: SmallCenterNet2, detector: CenterNet2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_weights(detector.state_dict(), tmp_path / "trained.pth")
    bank = write_bank(
        ClassBank(torch.randn(3, 16, generator=torch.Generator().manual_seed(3)), ("zebra", "bus stop", "kite")),
        tmp_path / "own.safetensors",
    )
    keys = {"MODEL__ZEROSHOT_CLS__WEIGHT_PATH": bank, "MODEL__ROI_HEADS__NUM_CLASSES": 3}
    model = ["--config-file", CONFIG, "--weight", str(weights), "--device", "cpu", "--min-score", "0"]
    shots = str(small.annotations.parent)

    def ask(command: str, *words: str) -> int:
        return mrb.main([command, shots, *words, *model, "--set", *options(small.narrow.folder, **keys)])

    out = tmp_path / "found.json"
    assert ask("label", "--labels", "kite, Bus_Stop", "--output", str(out)) == 0
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["categories"]] == ["kite", "Bus_Stop"]
    assert {row["category_id"] for row in found["annotations"]} <= {1, 2}
    assert all("segmentation" in row for row in found["annotations"])
    assert len(found["annotations"]) > 0
    assert mrb.main(["data", "check", str(out), "--images", shots, "--output", str(tmp_path / "check")]) == 0
    assert ask("detect", "--labels", "zebra", "--output", str(tmp_path / "drawn")) == 0

    data = json.loads(small.annotations.read_text())
    names = [{"id": n, "name": name} for n, name in enumerate(("zebra", "bus stop", "kite"), 1)]
    data |= {"categories": names, "annotations": [row for row in data["annotations"] if row["category_id"] <= 3]}
    other = small.annotations.with_name("other.json")
    other.write_text(json.dumps(data))
    entry = {"ann_file": str(other), "img_dir": shots}
    task = tmp_path / "task.yaml"
    task.write_text(json.dumps({"DATASETS": {"REGISTER": {"own": entry}, "TEST": ["own"]}}))
    argv = ["eval", "--tasks", str(task), *model[:4], "--output", str(tmp_path / "out")]
    assert mrb.main([*argv, "--set", *options(small.narrow.folder, **keys)]) == 0
    (results,) = (tmp_path / "out").rglob("results.json")
    assert [row["name"] for row in json.loads(results.read_text())["per_category"]["bbox"]] == [
        row["name"] for row in names
    ]
    capsys.readouterr()
    assert ask("label", "--labels", "kite, submarine", "--output", str(tmp_path / "more.json")) == 2
    assert "no embedding of 'submarine': it has zebra, bus stop, kite" in capsys.readouterr().err


def losses(detector: CenterNet2, *targets: Target) -> dict[str, Tensor]:
    batch = Batch(pictures(len(targets)), list(targets))
    return detector.train()(batch).terms


def boxed(label: int = 1) -> Target:
    return Target(torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([label]), META)


def test_every_parameter_has_a_gradient_whatever_a_picture_has(detector: CenterNet2) -> None:
    """Otherwise several processes would wait for each other for ever."""
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), META)
    outlined = replace(boxed(), polygons=((corners(),),))
    for target in (outlined, boxed(), empty):
        detector.zero_grad()
        terms = losses(detector, target)
        assert terms.keys() >= TRAINING | {"loss_mask", "loss_centernet_loc"}
        assert (terms["loss_mask"] > 0) == (target is outlined)
        torch.stack(list(terms.values())).sum().backward()
        assert not [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]


def corners() -> np.ndarray:
    return np.array([10.0, 10, 60, 10, 60, 60])


def test_labels_that_the_network_does_not_know_are_refused(detector: CenterNet2) -> None:
    with pytest.raises(DataError, match=f"classes 1 to {len(CLASSES)}"):
        losses(detector, boxed(len(CLASSES) + 1))
    with pytest.raises(DataError, match="multi_dataset"):
        losses(detector, boxed(), labelled(1))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"MODEL__BACKBONE__OUT_CHANNELS": 20}, "a multiple of 32"),
        ({"MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE": False}, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False"),
        ({"MODEL__CENTERNET__FPN_STRIDES": "(8, 16)"}, "must have 2 ranges"),
        ({"MODEL__ROI_BOX_CASCADE_HEAD__IOUS": "(0.5, 0.6)"}, "a row for each"),
        ({"MODEL__IMAGE_LABEL__LOSS": "image", "DATASETS__WITH_IMAGE_LABELS": True}, "ADD_IMAGE_BOX False"),
        (
            {
                "MODEL__IMAGE_LABEL__LOSS": "",
                "DATASETS__WITH_IMAGE_LABELS": True,
                "DATALOADER__DATASET_ANN": "('box', 'image')",
            },
            "needs a loss",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(small: SmallCenterNet2, keys: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_detector(load_cfg(CONFIG, opts=options(small.narrow.folder, **keys)))


def test_a_released_file_loads_and_begins_a_training_of_other_classes(
    small: SmallCenterNet2, detector: CenterNet2, tmp_path: Path
) -> None:
    state = detector.state_dict()
    names = rename(state, CENTERNET2, outward=True)
    file = {released: state[name] for name, released in names.items()}
    file["backbone.bottom_up.base.bn1.num_batches_tracked"] = torch.tensor(0)
    path = save_weights(file, tmp_path / "model_final.pth")
    assert load_weights(build_detector(load_cfg(CONFIG, opts=options(small.narrow.folder))), path, rules=RELEASED).fits
    np.save(tmp_path / "names.npy", np.ones((3, 16), np.float16))
    other = build_detector(load_cfg(CONFIG, opts=options(tmp_path, MODEL__ROI_HEADS__NUM_CLASSES=3)))
    own = {
        f"roi_heads.box_predictor.{stage}.{name}"
        for stage in range(3)
        for name in ("freq_weight", "cls_score.zs_weight")
    }
    assert set(load_weights(other, path, rules=RELEASED).left_alone) == own
    assert set(start_from(other, path).left_alone) == own


def test_a_training_with_outlines_is_scored_by_boxes_and_masks(small: SmallCenterNet2, tmp_path: Path) -> None:
    argv = [word for word in small.argv(tmp_path, SOLVER__MAX_ITER=10) if word != "--skip-test"]
    from tools import train_net

    assert cli.run(train_net.main, argv) == 0
    steps = rows(tmp_path)
    assert len(steps) == 10
    assert steps[0].keys() >= TRAINING | {"loss_mask", "loss_centernet_agn_pos", "loss_centernet_agn_neg"}
    assert sum(row["loss"] for row in steps[-3:]) < sum(row["loss"] for row in steps[:3])
    results = json.loads((tmp_path / "inference" / "drawn" / "results.json").read_text())
    assert results["metrics"].keys() >= {"AP", "AP50", "segm/AP", "segm/AP50"}
    assert results["plus_one"] is False
    assert json.loads((tmp_path / "inference" / "drawn" / "segm.json").read_text())


def test_a_training_with_names_only(small: SmallCenterNet2, tmp_path: Path) -> None:
    keys = {
        "SOLVER__MAX_ITER": 4,
        "SOLVER__CHECKPOINT_PERIOD": 4,
        "DATASETS__TRAIN": "('drawn_boxes', 'drawn_names')",
        "DATASETS__WITH_IMAGE_LABELS": True,
        "MODEL__IMAGE_LABEL__LOSS": "max_size",
        "DATALOADER__DATASET_ANN": "('box', 'image')",
        "DATALOADER__DATASET_RATIO": "(1, 2)",
    }
    assert small.run(tmp_path, **keys) == 0
    steps = rows(tmp_path)
    assert all({f"image_loss_stage{stage}" for stage in range(3)} <= row.keys() for row in steps)
    assert all((row["image_loss_stage0"] > 0) == (row["loss_cls_stage0"] == 0) for row in steps)
    assert any(row["image_loss_stage0"] > 0 for row in steps)


def test_masks_are_not_scored_where_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    coco = {
        "images": [{"id": 1, "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [row],
    }
    assert list(CocoEvaluator(coco, {1: 1}, iou_types=("bbox", "segm")).truth) == ["bbox"]
    assert "masks are not scored" in caplog.text
