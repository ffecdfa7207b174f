"""Which images there are, and which class each belongs to."""

import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data.dataset import ImageDataset

from qvit.data import DataConfig, fingerprint, open_images
from qvit.errors import InputError, RequirementError, UsageError
from tests.samples import CLASSES, encode, write_image_folder

CONFIG = DataConfig(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images")


@pytest.fixture
def write_map(tmp_path: Path) -> Callable[..., Path]:
    def write(content: object, name: str = "map.txt") -> Path:
        path = tmp_path / name
        data = content if isinstance(content, bytes) else "\n".join(map(str, content)).encode()  # pyright: ignore[reportArgumentType]
        path.write_bytes(data)
        return path

    return write


def pack(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as tar:
        tar.add(folder, arcname="images")
    return target


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm's data set
def test_order_labels_and_pixels_agree_with_timms_dataset(folder: Path) -> None:
    dataset = open_images(folder, CONFIG, num_classes=4)
    reference = ImageDataset(str(folder), transform=CONFIG.transform())
    assert len(dataset) == len(reference) == 12
    for i, (image, label) in enumerate(reference):  # pyright: ignore[reportArgumentType]
        mine, my_label, index = dataset[i]
        assert mine is not None
        assert torch.equal(mine, image)
        assert (my_label, index) == (label, i)
        assert dataset.path(i) == reference.filename(i)
    labels = {dataset.path(i).split("/")[0]: label for i, label in enumerate(dataset.labels)}
    assert labels == {"ant": 0, "bee": 1, "cat9": 2, "cat10": 3}


def test_a_tar_reads_as_the_folder_does(folder: Path, tmp_path: Path) -> None:
    tarred = open_images(pack(folder, tmp_path / "images.tar"), CONFIG, num_classes=4)
    plain = open_images(folder, CONFIG, num_classes=4)
    assert tarred.labels == plain.labels
    assert [tarred.size(i) for i in range(12)] == [plain.size(i) for i in range(12)]
    for i in range(12):
        assert torch.equal(tarred.read(i), plain.read(i))
    assert list(tmp_path.glob("*pickle*")) == []


def test_a_tar_of_tars_reads_as_the_folder_does(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "outer.tar", "w") as outer:
        for name in CLASSES:
            inner = tmp_path / f"{name}.tar"
            with tarfile.open(inner, "w") as tar:
                for file in sorted((folder / name).iterdir()):
                    tar.add(file, arcname=file.name)
            outer.add(inner, arcname=inner.name)
    nested = open_images(tmp_path / "outer.tar", CONFIG, num_classes=4)
    plain = open_images(folder, CONFIG, num_classes=4)
    mine = {(label, nested.read(i).sum().item()) for i, label in enumerate(nested.labels)}
    assert mine == {(label, plain.read(i).sum().item()) for i, label in enumerate(plain.labels)}


def test_a_class_map_gives_the_models_order(folder: Path, write_map: Callable[..., Path]) -> None:
    names = ["zebra", "cat10", "bee", "ant", "cat9", "dog"]
    dataset = open_images(folder, CONFIG, class_map=write_map([*names, "", ""]), num_classes=6)
    assert all(
        names[label] == dataset.path(i).split("/")[0] for i, label in enumerate(dataset.labels)
    )
    pickled = write_map(pickle.dumps({n: i for i, n in enumerate(names)}), "map.pkl")
    assert open_images(folder, CONFIG, class_map=pickled).labels == dataset.labels


def test_a_class_map_is_also_found_in_the_data_folder(folder: Path) -> None:
    (folder / "order.txt").write_text("cat9\ncat10\nbee\nant\n")
    assert open_images(folder, CONFIG, class_map="order.txt").labels[0] == 3


@pytest.mark.parametrize(
    ("lines", "num_classes", "part"),
    [
        (["ant", "bee", "cat9"], 4, r"1 of 4 classes .* are not in the class map .*'cat10'"),
        (["n1 ant", "n2 bee"], 4, r"4 of 4 classes .* begins with 'n1 ant', 'n2 bee'"),
        (["ant", "bee", "cat9", "cat10", "dog"], 4, r"up to index 4, but the model has 4 classes"),
        (["ant", "bee", "cat9", "ant"], 4, r"names 'ant' twice .*line 4"),
        ([], 4, "is empty"),
    ],
)
def test_a_class_map_that_does_not_match_is_refused(
    folder: Path, write_map: Callable[..., Path], lines: list[str], num_classes: int, part: str
) -> None:
    with pytest.raises(InputError, match=part):
        open_images(folder, CONFIG, class_map=write_map(lines), num_classes=num_classes)


class Payload:
    def __reduce__(self) -> tuple:
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "name", "part"),
    [
        (b"\xff\xfe\x00", "map.txt", "cannot be read"),
        (b"ant", "map.csv", "'.csv'"),
        (b"nonsense", "map.pkl", "cannot be read"),
        (pickle.dumps(["ant"]), "map.pkl", "cannot be read"),
        (pickle.dumps(Payload()), "map.pkl", "not permitted"),
        (pickle.dumps({"ant": "0"}), "map.pkl", "maps 'ant' to '0'"),
        (pickle.dumps({"ant": -1}), "map.pkl", "maps 'ant' to -1"),
        (pickle.dumps({3: 0}), "map.pkl", "maps 3 to 0"),
    ],
)
def test_files_that_are_no_class_map_are_refused(
    folder: Path,
    write_map: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    name: str,
    part: str,
) -> None:
    with pytest.raises(InputError, match=part):
        open_images(folder, CONFIG, class_map=write_map(content, name))
    assert capsys.readouterr().out == ""


def test_an_absent_class_map_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_images(folder, CONFIG, class_map=tmp_path / "absent.txt")


def test_another_number_of_classes_than_the_models_asks_for_a_class_map(folder: Path) -> None:
    with pytest.raises(InputError, match=r"has 4 classes .*the model has 1000.*--class-map"):
        open_images(folder, CONFIG, num_classes=1000)


def test_images_without_class_folders_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="one folder per class"):
        open_images(folder / "ant", CONFIG, num_classes=4)


def test_a_model_without_classes_cannot_be_evaluated(folder: Path) -> None:
    with pytest.raises(UsageError, match="no classes"):
        open_images(folder, CONFIG, num_classes=0)


def test_data_that_is_absent_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        open_images(tmp_path / "absent", CONFIG)
    assert caught.value.exit_code == 4
    (tmp_path / "ant").mkdir()
    with pytest.raises(InputError, match="has no images"):
        open_images(tmp_path, CONFIG)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"not a \.tar"):
        open_images(tmp_path / "notes.txt", CONFIG)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(InputError, match="has no images"):
        open_images(tmp_path / "empty.tar", CONFIG)


def test_a_truncated_tar_is_refused(folder: Path, tmp_path: Path) -> None:
    data = pack(folder, tmp_path / "images.tar").read_bytes()
    for name, kept in (("short.tar", len(data) // 2 + 100), ("shorter.tar", 100)):
        (tmp_path / name).write_bytes(data[:kept])
        with pytest.raises(InputError, match="truncated or corrupt"):
            open_images(tmp_path / name, CONFIG)


def test_streams_and_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="stream"):
        open_images("wds/imagenet", CONFIG)
    monkeypatch.setattr("qvit.data.listings.find_spec", lambda name: None)
    with pytest.raises(RequirementError, match="pip install datasets"):
        open_images("hfds/imagenet-1k", CONFIG)


def test_a_limit_spreads_over_the_classes(folder: Path) -> None:
    dataset = open_images(folder, CONFIG, num_classes=4, limit=4)
    assert dataset.labels == [0, 1, 2, 3]
    assert [dataset[i][2] for i in range(4)] == [0, 1, 2, 3]
    assert len(open_images(folder, CONFIG, limit=100)) == 12
    with pytest.raises(UsageError, match="at least one"):
        open_images(folder, CONFIG, limit=0)


def test_real_images_and_their_class_map(shared: Path) -> None:
    imagenet = shared / "imagenet"
    dataset = open_images(
        imagenet / "train",
        CONFIG,
        class_map=imagenet / "synsets.txt",
        num_classes=1000,
        limit=10,
    )
    names = (imagenet / "synsets.txt").read_text().split()
    assert [names[label] for label in dataset.labels] == [
        dataset.path(i).split("/")[0] for i in range(10)
    ]
    assert dataset.read(3).shape == (3, 32, 32)


# Fingerprints


def test_fingerprints_follow_data_labels_and_preprocessing(
    folder: Path, tmp_path: Path, write_map: Callable[..., Path]
) -> None:
    first = fingerprint(open_images(folder, CONFIG))
    assert first == fingerprint(open_images(folder, CONFIG))
    assert len(first) == 64
    squashed = DataConfig.from_pretrained_cfg(CONFIG.to_dict(), crop_mode="squash")
    mapping = write_map(reversed(CLASSES))
    others = {
        fingerprint(open_images(folder, squashed)),
        fingerprint(open_images(folder, CONFIG, class_map=mapping)),
        fingerprint(open_images(folder, CONFIG, limit=6)),
    }
    moved = folder.rename(tmp_path / "elsewhere")
    assert fingerprint(open_images(moved, CONFIG)) == first
    (moved / "ant" / "0.png").write_bytes(encode(Image.new("RGB", (9, 9))))
    others.add(fingerprint(open_images(moved, CONFIG)))
    (moved / "bee" / "0.png").rename(moved / "bee" / "00.png")
    others.add(fingerprint(open_images(moved, CONFIG)))
    (moved / "bee" / "00.png").unlink()
    others.add(fingerprint(open_images(moved, CONFIG)))
    assert len(others | {first}) == 7
