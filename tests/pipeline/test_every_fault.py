"""One of every fault, in one folder: the report names each file with what is wrong with it, and no other file."""

import io
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_sets import encode, noise, write
from manifests import limits
from PIL import Image
from test_prepare_hostile import HOSTILE

from pipelines.prepare import prepare
from pipelines.sources.kinds import open_source
from pipelines.validate import validate
from pipelines.validation.report import MAX_NAMED

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"),
]

Faults = dict[str, dict[str, str]]  # column of the report: id: pattern of the value

PHOTO = Image.fromarray(noise(1_000, (12, 12, 3))).resize((64, 64), Image.Resampling.BICUBIC)
ODD = "train/cat/a name \u00fc \u732b,\nof two 'lines'"
TURNED = Image.Exif()
TURNED[0x0112] = 6

HARMLESS = {
    "train/dog/turned.jpg": encode(noise(1_001, (32, 24, 3)), "JPEG", exif=TURNED),
    "train/dog/CMYK.jpg": encode(Image.fromarray(noise(1_002, (32, 32, 3))).convert("CMYK"), "JPEG"),
    "train/dog/palette.png": encode(Image.fromarray(noise(1_003, (32, 32))).convert("P")),
    "train/dog/transparent.png": encode(noise(1_004, (32, 32, 4))),
    "train/dog/16 bits.png": encode(noise(1_005, (32, 32)).astype(np.uint16) * 256),
    "train/dog/1 bit.png": encode(noise(1_006, (32, 32)) > 127),
    "train/dog/animated.gif": encode(
        noise(1_007, (32, 32)), "GIF", save_all=True, append_images=[Image.new("L", (32, 32))]
    ),
    "train/dog/LOUD.JPEG": encode(noise(1_008, (32, 32)), "JPEG"),
    "train/dog/photo.png": encode(PHOTO),
    "train/dog/original.png": encode(noise(1_009, (32, 32))),
    f"{ODD}.png": encode(noise(1_010, (32, 32))),
}
BROKEN = {f"train/cat/{name}": data for name, (data, _) in HOSTILE.items() if not name.endswith(("svg", "eps"))}
BROKEN[f"{ODD}, empty.png"] = b""
FAULTY = {
    "train/cat/a photo.png": encode(noise(1_011, (32, 32)), "JPEG"),
    "train/dog/again.png": HARMLESS["train/dog/original.png"],
    "test/dog/leaked.png": HARMLESS["train/dog/LOUD.JPEG"],
    "train/cat/a dog.jpg": HARMLESS["train/dog/CMYK.jpg"],
    "val/dog/nearly.jpg": encode(PHOTO, "JPEG", quality=60),
    "train/dog/black.png": encode(np.zeros((32, 32), np.uint8)),
    "train/dog/almost white.png": encode(np.full((32, 32), 254, np.uint8) + (noise(1_012, (32, 32)) > 250)),
    "train/dog/icon.png": encode(noise(1_013, (4, 4))),
    "train/dog/huge.png": encode(np.tile(noise(1_014, (2_100, 1)), (1, 10_001))),
    "train/dog/long.png": encode(noise(1_015, (10, 60))),
}
STRAYS = {
    "train/cat/drawing.svg": HOSTILE["drawing.svg"][0],
    "train/cat/script.eps": HOSTILE["script.eps"][0],
    "train/dog/.DS_Store": b"\0\0\0\1Bud1",
    "notes.txt": b"no image",
    "train/dog/photo without extension": encode(noise(1_016)),
    "train/beside.png": encode(noise(1_017)),
}
FAULTS: Faults = {
    "decode_error": {name: HOSTILE.get(name.removeprefix("train/cat/"), HOSTILE["zero.jpg"])[1] for name in BROKEN},
    "other_format": {"train/cat/a photo.png": "^JPEG$", "test/dog/leaked.png": "^JPEG$"},
    "copy_of": {"train/dog/original.png": "^train/dog/again.png$", "train/dog/CMYK.jpg": "^train/cat/a dog.jpg$"},
    "same_image_in_other_split": {
        "test/dog/leaked.png": "^train/dog/LOUD.JPEG$",
        "train/dog/LOUD.JPEG": "^test/dog/leaked.png$",
    },
    "same_image_with_other_label": {
        "train/cat/a dog.jpg": r"^train/dog/CMYK.jpg \(dog\)$",
        "train/dog/CMYK.jpg": r"^train/cat/a dog.jpg \(cat\)$",
    },
    "near_duplicate_in_other_split": {
        "val/dog/nearly.jpg": "^train/dog/photo.png$",
        "train/dog/photo.png": "^val/dog/nearly.jpg$",
    },
    "largest_std": {"train/dog/black.png": "^0.0$", "train/dog/almost white.png": r"^0\.00"},
    "shorter_side": {"train/dog/icon.png": "^4"},
    "longer_side": {"train/dog/huge.png": "^10001"},
    "aspect_ratio": {"train/dog/long.png": "^6"},
    "reason": {
        "train/cat/drawing.svg": "^an image in SVG format, which is not read: convert it",
        "train/cat/script.eps": "^no image: a file with the extension .eps$",
        "train/dog/.DS_Store": "^a hidden file$",
        "notes.txt": "^no image: a file with the extension .txt$",
        "train/dog/photo without extension": "^a PNG file with no extension: rename it",
        "train/beside.png": "^an image beside the directories of the classes",
        "train/dog/out.png": "^a link to .*/elsewhere.png, out of the source: copy the file$",
        "train/dog/nowhere.png": "^a link to nothing: No such file",
        "train/dog/pipe.png": "^a named pipe, no file$",
    },
    "images": {"val/owl": "^0$", "test/owl": "^0$"},
    "times_rarer": {"train/owl": "^1[0-9][0-9]"},
    "change": {"emu": "^not in the data$", "owl": "^not named in the parameters$"},
}


def ordinary(root: Path) -> None:
    counts = {
        "train/cat": 120,
        "train/owl": 1,
        **{f"{split}/{name}": 3 for split in ("val", "test") for name in ["cat", "dog"]},
    }
    names = [f"{directory}/{index:03d}.png" for directory, count in counts.items() for index in range(count)]
    write(root, {name: encode(noise(seed, (32, 32, 3))) for seed, name in enumerate(names)})


def protect(root: Path) -> dict[str, tuple[object, ...]]:
    """Make it read-only; returns what anything that is written there would change."""
    paths = [root, *sorted(root.rglob("*"))]
    for path in paths:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    return state(root)


def state(root: Path) -> dict[str, tuple[object, ...]]:
    stats = {os.fsdecode(path): path.lstat() for path in [root, *root.rglob("*")]}
    return {name: (it.st_mode, it.st_size, it.st_mtime_ns) for name, it in stats.items()}


def report_on(source: str, task: str = "classification", **changes: Any) -> tuple[bool, dict[str, Any]]:
    """Prepare and validate in the working directory; returns whether it may go on, and the report."""
    void_index = 255 if task == "segmentation" else None
    opened = open_source(source, task=task, void_index=void_index)
    prepared, reports = Path("data/prepared"), Path("reports")
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2}
    prepare(opened, prepared, **fractions, seed=0, origin=source, void_index=void_index)
    goes_on = validate(prepared, reports, limits(**changes))
    report = json.loads((reports / "validation.json").read_text(encoding="utf-8"))
    return goes_on, report


def reported(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    failed = [it for it in report["expectations"] if it["unexpected_count"]]
    return {it["column"]: {sample["id"]: sample["value"] for sample in it["samples"]} for it in failed}


def check(report: Mapping[str, Any], table: str, expected: Faults) -> None:
    found = reported(report)
    assert {column: sorted(samples) for column, samples in found.items()} == {
        column: sorted(samples) for column, samples in expected.items()
    }
    for column, samples in expected.items():
        for name, pattern in samples.items():
            assert re.search(pattern, str(found[column][name])), (column, name, found[column][name])
            line = f"  {name}: {column} = ".replace("\n", r"\n")
            assert line in table or len(samples) > MAX_NAMED, line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_a_folder_with_every_fault(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ordinary(folder)
    write(folder, {**HARMLESS, **BROKEN, **FAULTY, **STRAYS})
    write(folder.parent, {"elsewhere.png": encode(noise(1_018))})
    (folder / "train/dog/out.png").symlink_to(folder.parent / "elsewhere.png")
    (folder / "train/dog/nowhere.png").symlink_to("nothing")
    os.mkfifo(folder / "train/dog/pipe.png")
    before = protect(folder)

    goes_on, report = report_on("folder:photos", classes={"names": ["cat", "dog", "emu"]})

    out, err = capfd.readouterr()
    assert not goes_on
    assert "Traceback" not in out + err
    check(report, out, FAULTS)
    assert "huge.png: longer_side = 10,001\n" in out
    assert "every image can be decoded\n" in out and "every class has 1 image or more in every split\n" in out
    assert f"{MAX_NAMED} of {len(BROKEN)}, all of them in validation.json" in out
    assert state(folder) == before


SCENES = {
    f"{split}/images/{index}.png": noise(index, (20, 30, 3)) for index, split in enumerate(["train", "val", "test"] * 2)
}
GOOD_MASK = np.repeat(np.array([[0, 1, 255]], np.uint8), 10, axis=1).repeat(20, axis=0)  # (20, 30)
MASKS = {
    "other size": encode(GOOD_MASK.T),
    "unknown value": encode(np.where(GOOD_MASK == 1, 7, GOOD_MASK)),
    "colored": encode(np.stack([GOOD_MASK] * 3, axis=-1)),
    "all void": encode(np.full_like(GOOD_MASK, 255)),
    "truncated": encode(noise(0, (20, 30)))[:200],
    "empty": b"",
    "palette": encode(Image.fromarray(GOOD_MASK).convert("P", palette=Image.Palette.WEB)),
    "16 bits": encode(GOOD_MASK.astype(np.uint16)),
}
MASK_FAULTS: Faults = {
    "mask_error": {
        "train/images/other size.png": "^mask and image have 20 x 30 and 30 x 20 pixels, expected the same$",
        "train/images/unknown value.png": r"^values of no class: 7 \(200 pixels\); expected 0, 1, or 255 \(void\)$",
        "train/images/colored.png": "^the mask has mode RGB, expected one channel",
        "train/images/truncated.png": "^cannot be decoded: image file is truncated",
        "train/images/empty.png": "^the file is empty$",
    },
    "void_share": {"train/images/all void.png": "^1.0$"},
    "reason": {
        "train/images/without mask.png": "^an image without a mask of the same stem$",
        "train/masks/without image.png": "^a mask without an image of the same stem$",
    },
}


def test_masks_with_every_fault(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(folder, {"classes.txt": b"road\ncar\n"})
    write(folder, {name: encode(pixels) for name, pixels in SCENES.items()})
    write(folder, {name.replace("images", "masks"): encode(GOOD_MASK) for name in SCENES})
    for seed, (name, mask) in enumerate(MASKS.items(), start=100):
        write(folder, {f"train/images/{name}.png": encode(noise(seed, (20, 30, 3))), f"train/masks/{name}.png": mask})
    write(
        folder, {"train/images/without mask.png": encode(noise(98)), "train/masks/without image.png": encode(noise(99))}
    )
    before = protect(folder)

    goes_on, report = report_on("folder:photos", task="segmentation")

    assert not goes_on
    check(report, capfd.readouterr().out, MASK_FAULTS)
    assert state(folder) == before


def test_a_table_with_every_fault(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = [f"{index:02d}.png" for index in range(24)]
    write(folder, {name: encode(noise(seed, (32, 32))) for seed, name in enumerate(names)})
    write(folder.parent, {"elsewhere.png": encode(noise(99))})
    (folder / "out.png").symlink_to(folder.parent / "elsewhere.png")
    splits = ["train", "train", "val", "test"]
    rows = [f"{name},{'cat' if k % 2 else 'dog'},{splits[k // 2 % 4]}," for k, name in enumerate(names)]
    rows[0], rows[4] = rows[0] + "herd", rows[4] + "herd"
    faulty = ["01.png,dog,train,", "gone.png,cat,train,", "out.png,cat,train,", "../elsewhere.png,cat,train,"]
    write(folder, {"index.csv": "\n".join(["image,label,split,group", *rows, *faulty]).encode()})
    before = protect(folder)

    goes_on, report = report_on("csv:photos/index.csv")

    assert not goes_on
    expected: Faults = {
        "decode_error": {
            "gone.png": "^the file cannot be read: No such file",
            "out.png": "^the file cannot be read: it is a link out of the folder of the CSV file",
        },
        "reason": {"../elsewhere.png": "^line 29: a path that is absolute or leaves the folder"},
        "same_image_with_other_label": {"01.png": r"^01.png#2 \(dog\)$", "01.png#2": r"^01.png \(cat\)$"},
        "copy_of": {"01.png#2": "^01.png$"},
        "group_in_other_split": dict.fromkeys(["00.png", "04.png"], "^herd: train, val$"),
    }
    check(report, capfd.readouterr().out, expected)
    assert state(folder) == before


class Payload:
    """Code that a pickle would run."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("was run"),)


@pytest.mark.parametrize("name", ["images", "labels", "classes"])
def test_no_pickle_is_loaded(folder: Path, name: str) -> None:
    arrays: dict[str, Any] = {"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0, 1])}
    np.savez(folder.parent / "set.npz", **{**arrays, name: np.array([Payload()], dtype=object)})

    with pytest.raises(ValueError, match=r"set.npz cannot be read: Object arrays cannot be loaded.*without Python obj"):
        open_source("npz:set.npz")

    assert not Path("was run").exists()
    pickle.load(io.BytesIO(pickle.dumps(Payload())))
    assert Path("was run").exists(), "what the test relies on"
