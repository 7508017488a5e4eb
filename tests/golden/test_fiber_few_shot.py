"""The pictures that a few-shot training takes, as recorded from the reference."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from tests.golden.common import golden_cases, load_case

READER = re.compile(r"(CocoGrounding|COCODataset)\(shuffle_seed=(\d+)( is IGNORED)?\)")


@pytest.mark.parametrize("path", golden_cases("fiber", "few_shot*"))
def test_the_pictures_of_a_few_shots(path: Path, tmp_path: Path) -> None:
    rows = load_case(path)[0]["cases"]
    files = {}
    for row in rows:
        if "dataset" in row:
            files[row["data_seed"]] = tmp_path / f"{row['data_seed']}.json"
            files[row["data_seed"]].write_text(json.dumps(row["dataset"]))
    cases = [row for row in rows if "shot" in row]
    assert cases
    for row in cases:
        readers = {key: READER.fullmatch(key) for key in row if key not in ("shot", "data_seed")}
        assert all(readers.values()), row
        for key, how in readers.items():
            seed = 0 if how[3] else int(how[2])
            found = CocoGrounding(tmp_path, files[row["data_seed"]], shots=row["shot"], seed=seed)
            assert [found.image_id(index) for index in range(len(found))] == row[key], (row["data_seed"], key)
