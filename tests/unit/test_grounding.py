"""FIBER and GLIP as detectors: what goes in, what comes out, and what is refused. Narrow nets with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.backbone.language import LanguageFeatures, make_tunable
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.grounding import FiberDetector, GlipDetector
from maskrcnn_benchmark.modeling.heads.vldyhead import GroundingRPN
from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta, Prompt, TextBatch

NARROW = """
MODEL.SWINT.EMBED_DIM 16  MODEL.SWINT.NUM_HEADS (1,1,2,2)  MODEL.SWINT.OUT_CHANNELS (16,32,64,128)
MODEL.SWINT.WINDOW_SIZE 4  MODEL.BACKBONE.OUT_CHANNELS 32  MODEL.DYHEAD.CHANNELS 32  MODEL.DYHEAD.NUM_CONVS 1
MODEL.LANGUAGE_BACKBONE.LANG_DIM 24  MODEL.LANGUAGE_BACKBONE.NUM_HEADS 2  MODEL.LANGUAGE_BACKBONE.VOCAB_SIZE 50
MODEL.LANGUAGE_BACKBONE.INTERMEDIATE_SIZE 32  MODEL.DYHEAD.FUSE_CONFIG.JOINT_EMB_SIZE 32
MODEL.ATSS.INFERENCE_TH 0.0  MODEL.DYHEAD.LOG_SCALE -2.0  MODEL.ATSS.DETECTIONS_PER_IMG 30
"""
SYSTEMS = {
    "fiber": ("configs/pretrain/mixed_nococo_flickr_objects365.yaml", "MODEL.SWINT.DEPTHS (1,1,5,2)"),
    "glip": ("configs/pretrain/glip_Swin_T_O365_GoldG.yaml", "MODEL.SWINT.DEPTHS (1,1,1,1)"),
    "glip_a": ("configs/pretrain/glip_A_Swin_T_O365.yaml", "MODEL.SWINT.DEPTHS (1,1,1,1)"),
}


def build(system: str, *more: str) -> nn.Module:
    config, depths = SYSTEMS[system]
    torch.manual_seed(0)
    detector = build_detector(load_cfg(config, opts=[*NARROW.split(), *depths.split(), *more]))
    for name, parameter in detector.named_parameters():
        if "alpha_" in name:
            nn.init.constant_(parameter, 0.5)
    return detector


@pytest.fixture(scope="module", params=list(SYSTEMS))
def detector(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def picture(seed: int) -> Tensor:
    return torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(seed))


def batch(*seeds: int, orig: tuple[int, int] = (64, 96)) -> ImageBatch:
    return ImageBatch.pad([picture(seed) for seed in seeds], [ImageMeta(seed, (64, 96), orig) for seed in seeds])


def text(*words: str, length: int = 8, ids: tuple[int, ...] = (3, 7)) -> TextBatch:
    """Prompts of two entities each: token 1, and tokens 3 and 4; ``words`` only choose the token ids."""
    prompts = tuple(Prompt("cat. red dog", (((0, 3),), ((5, 12),)), ids, ("cat", "red dog")) for _ in words)
    input_ids = torch.ones(len(words), length, dtype=torch.int64)
    for row, word in zip(input_ids, words, strict=True):
        row[:6] = torch.tensor([0, *(5 + (ord(c) + 7 * i) % 40 for i, c in enumerate(word[:4].ljust(4))), 2])
    mask = torch.zeros_like(input_ids)
    mask[:, :6] = 1
    tokens = torch.zeros(2, length, dtype=torch.bool)
    tokens[0, 1] = tokens[1, 3] = tokens[1, 4] = True
    return TextBatch(prompts, input_ids, mask, tuple(tokens.clone() for _ in words))


@torch.inference_mode()
def detect(detector: nn.Module, images: ImageBatch, prompts: TextBatch) -> list[Detections]:
    return detector.detect(detector.encode_image(images), detector.encode_text(prompts))


def assert_same(found: Detections, expected: Detections) -> None:
    """The same detections; those of (nearly) equal score may change places."""
    assert len(found) == len(expected)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    table = torch.cat([found.boxes, found.labels[:, None].float()], dim=1)
    other = torch.cat([expected.boxes, expected.labels[:, None].float()], dim=1)
    assert (torch.cdist(table, other).amin(1) < 0.05).float().mean() > 0.95


def test_config_chooses_the_system() -> None:
    assert isinstance(build("fiber"), FiberDetector)
    assert isinstance(build("glip"), GlipDetector)


def test_detections_are_named_and_in_the_picture(detector: nn.Module) -> None:
    (found,) = detect(detector, batch(1), text("abcd"))
    assert len(found) > 0
    assert set(found.labels.tolist()) <= {3, 7}
    assert found.names == {3: "cat", 7: "red dog"}
    assert found.boxes.min() >= 0
    assert (found.boxes.amax(0) <= torch.tensor([95.0, 63.0, 95.0, 63.0])).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_boxes_are_in_pixels_of_the_picture_on_disk(detector: nn.Module) -> None:
    (small,) = detect(detector, batch(1), text("abcd"))
    (large,) = detect(detector, batch(1, orig=(128, 480)), text("abcd"))
    torch.testing.assert_close(large.boxes, small.boxes * torch.tensor([5.0, 2.0, 5.0, 2.0]))


def test_batch_gives_what_pictures_give_alone(detector: nn.Module) -> None:
    together = detect(detector, batch(1, 2), text("abcd"))
    for seed, found in zip((1, 2), together, strict=True):
        assert found.meta.image_id == seed
        assert_same(found, detect(detector, batch(seed), text("abcd"))[0])


def test_each_picture_may_have_its_own_prompt(detector: nn.Module) -> None:
    first, second = detect(detector, batch(1, 2), text("abcd", "wxyz"))
    assert_same(first, detect(detector, batch(1), text("abcd"))[0])
    assert_same(second, detect(detector, batch(2), text("wxyz"))[0])


def test_other_words_give_other_scores(detector: nn.Module) -> None:
    (one,), (other,) = (detect(detector, batch(1), text(word)) for word in ("abcd", "wxyz"))
    assert len(one) != len(other) or not torch.allclose(one.scores, other.scores, atol=1e-4)


def test_states_can_be_used_again(detector: nn.Module) -> None:
    with torch.inference_mode():
        image, words = detector.encode_image(batch(1)), detector.encode_text(text("abcd"))
        first = detector.detect(image, words)[0]
        detector.detect(image, detector.encode_text(text("wxyz")))
        detector.detect(detector.encode_image(batch(2)), words)
        again = detector.detect(image, words)[0]
    assert torch.equal(first.boxes, again.boxes)
    assert torch.equal(first.scores, again.scores)


def test_padding_of_text_changes_nothing(detector: nn.Module) -> None:
    short, padded = (detect(detector, batch(1), text("abcd", length=length))[0] for length in (6, 40))
    assert_same(padded, short)


def test_entity_without_tokens_is_not_found(detector: nn.Module) -> None:
    prompt = text("abcd")
    tokens = prompt.entity_tokens[0].clone()
    tokens[0] = False
    (found,) = detect(detector, batch(1), replace(prompt, entity_tokens=(tokens,)))
    assert set(found.labels.tolist()) == {7}
    (nothing,) = detect(detector, batch(1), replace(prompt, entity_tokens=(torch.zeros_like(tokens),)))
    assert len(nothing) == 0


def test_number_of_prompts_must_fit(detector: nn.Module) -> None:
    with pytest.raises(ValueError, match="3 prompts for 2 pictures: give one, or one for each"):
        detect(detector, batch(1, 2), text("a", "b", "c"))


def test_onehot_counts_tokens_from_the_start() -> None:
    (found,) = detect(build("fiber", "MODEL.DYHEAD.SCORE_AGG", "ONEHOT"), batch(1), text("abcd", ids=(1, 2)))
    assert set(found.labels.tolist()) <= {1, 2}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "GeneralizedVLRCN"], "Did you mean 'GeneralizedVLRCNN'"),
        (["MODEL.RPN_ARCHITECTURE", "ATSS"], r"MODEL.RPN_ARCHITECTURE 'ATSS' \(command line\) is not supported here"),
        (["MODEL.DYHEAD.CHANNELS", "64"], r"MODEL.DYHEAD.CHANNELS 64 \(command line\) .*: set it to 32"),
        (["MODEL.DYHEAD.SCORE_AGG", "MEDIAN"], "MODEL.DYHEAD.SCORE_AGG"),
        (["MODEL.IMPORTS", "('no_such_module',)"], r"MODEL.IMPORTS \(command line\): cannot import 'no_such_module'"),
    ],
)
def test_what_there_is_no_network_for_is_refused(opts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build("fiber", *opts)
    assert "\n" not in str(error.value)


def test_fusion_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"MODEL.DYHEAD.FUSE_CONFIG.TYPE 'NONE' .* set it to 'MHA-B'"):
        build("glip", "MODEL.DYHEAD.FUSE_CONFIG.TYPE", "NONE")


def test_imported_modules_can_add_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_detector.py").write_text(
        "from torch import nn\n"
        "from maskrcnn_benchmark.modeling.build import DETECTORS\n"
        "DETECTORS.register('Mine')(lambda cfg: nn.Identity())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    opts = ["MODEL.IMPORTS", "('my_detector',)", "MODEL.META_ARCHITECTURE", "Mine"]
    assert isinstance(build_detector(load_cfg(SYSTEMS["fiber"][0], opts=opts)), nn.Identity)


def test_imported_modules_can_add_a_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_backbone.py").write_text(
        "from torch import nn\n"
        "from maskrcnn_benchmark.modeling.backbone.build import BACKBONES\n"
        "BACKBONES.register('MY-NET')(lambda cfg: nn.Identity())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    detector = build("glip", "MODEL.IMPORTS", "('my_backbone',)", "MODEL.BACKBONE.CONV_BODY", "MY-NET")
    assert isinstance(detector.backbone, nn.Identity)


@pytest.mark.parametrize(("system", "name"), [("glip", "rpn."), ("fiber", "fusion_backbone.")])
def test_prompt_tuning_adds_one_layer_under_its_released_name(system: str, name: str) -> None:
    plain = build(system).state_dict()
    tuned = build(system, "MODEL.DYHEAD.FUSE_CONFIG.ADD_LINEAR_LAYER", "True").state_dict()
    assert set(tuned) - set(plain) == {f"{name}tunable_linear.weight"}


def test_prompt_tuning_of_glip_adds_to_its_text() -> None:
    language = LanguageFeatures(torch.zeros(1, 3, 4), torch.ones(1, 3, 4), torch.tensor([[1, 1, 0]]))
    tunable = make_tunable(4)
    rpn = GroundingRPN(nn.Identity(), nn.Identity(), tunable)
    assert rpn.tune(language).hidden.eq(0).all(), "nothing is learnt yet"
    nn.init.constant_(tunable.weight, 0.5)
    assert rpn.tune(language).hidden.eq(0.5).all()
    assert rpn.tune(language).embedded.eq(1.5).all()
