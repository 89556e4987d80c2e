"""Data sets: the three layouts, which output a class is, random subsets, and files that cannot be read."""

import hashlib
import json
import os
import pickle
import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from captum_unioncam import demo
from captum_unioncam.datasets.base import subset
from captum_unioncam.datasets.classes import names_of_outputs
from captum_unioncam.datasets.generated import DEMO_SEED
from captum_unioncam.datasets.open import open_data_set
from captum_unioncam.datasets.voc import VOC_CLASSES
from captum_unioncam.system.errors import Failure, WrongArgument

SEED = 77


def pixels(picture):
    return np.asarray(picture, dtype=int)


def save(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)


def make_folders(root, *classes):
    for name in classes:
        save(root / name / "a.png")
    return str(root)


def box_element(corners):
    return "<bndbox>" + "".join(f"<{key}>{value}</{key}>" for key, value in corners.items()) + "</bndbox>"


def corners(xmin, ymin, xmax, ymax):
    return {"ymin": ymin, "xmax": xmax, "xmin": xmin, "ymax": ymax}  # VOC's files differ in the order, too


def add_voc_picture(root, name, objects, size=(7, 5)):
    """Adds an image with (class, corners, difficult) objects to a VOC folder, and to its test list."""
    voc = root / "VOCdevkit" / "VOC2007"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(voc / "JPEGImages" / f"{name}.jpg")
    part = f"<part><name>head</name>{box_element(corners(1, 1, 1, 1))}</part>"
    entries = "".join(
        f"<object><name>{class_name}</name><difficult>{int(difficult)}</difficult>{box_element(box)}{part}</object>"
        for class_name, box, difficult in objects
    )
    (voc / "Annotations" / f"{name}.xml").write_text(f"<annotation><folder>VOC2007</folder>{entries}</annotation>")
    with (voc / "ImageSets" / "Main" / "test.txt").open("a") as test_list:
        test_list.write(f"{name}\n")
    return voc


# The demo.


def test_demo_pictures_are_those_of_the_generator():
    data_set = open_data_set("demo", demo.CLASS_NAMES, 8)
    images, labels, masks = demo.generate(3, DEMO_SEED)
    assert len(data_set.names) == 1000
    assert data_set.names[2] == "demo/00002.png"
    for name, image, label, mask in zip(data_set.names, images, labels.tolist(), masks, strict=False):
        sample = data_set.sample(name)
        assert sample.picture.mode == "RGB"
        assert np.array_equal(pixels(sample.picture), (image * 255).round().int().permute(1, 2, 0))
        assert data_set.targets(name) == (label,) == tuple(sample.objects)
        assert sample.objects[label].mode == "L"
        assert np.array_equal(pixels(sample.objects[label]), mask[0].int() * 255)


def test_demo_classes_are_found_in_a_model_that_has_them_elsewhere():
    reordered = ("Dog", *(name.upper() for name in reversed(demo.CLASS_NAMES)))
    given, default = open_data_set("demo", reordered, 9), open_data_set("demo", None, 8)
    (label,), (target,) = default.targets("demo/00000.png"), given.targets("demo/00000.png")
    assert reordered[target] == demo.CLASS_NAMES[label].upper()


# ImageNet's layout.


def test_image_folder_holds_the_generated_pictures(tmp_path):
    demo.write_image_folder(tmp_path, 9, SEED)
    images, labels, _ = demo.generate(9, SEED)
    data_set = open_data_set(str(tmp_path), demo.CLASS_NAMES, 8)
    assert data_set.names == sorted(
        f"{demo.CLASS_NAMES[label]}/{index:05d}.png" for index, label in enumerate(labels.tolist())
    )
    for name in data_set.names:
        index = int(Path(name).stem)
        sample = data_set.sample(name)
        assert data_set.targets(name) == (labels[index],)
        assert sample.objects == {int(labels[index]): None}
        assert np.array_equal(pixels(sample.picture), (images[index] * 255).round().int().permute(1, 2, 0))


def test_pictures_are_found_below_class_folders_by_their_extension(tmp_path):
    for name in ("n02/b.JPEG", "n02/deep/er/a.jpg", "n01/ä b.WebP", "n01/linked/x.png"):
        save(tmp_path / name)
    (tmp_path / "n03").mkdir()
    (tmp_path / "n01" / "folder.png").mkdir()
    for name in ("readme.txt", "top.png", "n01/notes.txt", "n02/jpg"):
        (tmp_path / name).write_text("no image")
    data_set = open_data_set(str(tmp_path), None, 3)
    assert data_set.names == ["n01/linked/x.png", "n01/ä b.WebP", "n02/b.JPEG", "n02/deep/er/a.jpg"]
    # The folder without images is the third class, and so counts where classes are told by their order.
    assert [data_set.targets(name) for name in data_set.names] == [(0,), (0,), (1,), (1,)]


def test_linked_class_folders_are_followed(tmp_path):
    save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ring").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert open_data_set(str(tmp_path / "data"), ["ring"], 1).names == ["ring/a.png"]


def test_names_are_the_same_however_the_folder_is_written(tmp_path, monkeypatch):
    make_folders(tmp_path / "data", "a", "b")
    monkeypatch.chdir(tmp_path)
    for path in ("data", "./data/", "data/../data", str(tmp_path / "data")):
        data_set = open_data_set(path, None, 2)
        assert data_set.names == ["a/a.png", "b/a.png"]
        assert data_set.sample("a/a.png").picture.size == (6, 4)


def test_a_folder_called_demo_is_opened_by_its_path(tmp_path, monkeypatch):
    make_folders(tmp_path / "demo", "star")
    monkeypatch.chdir(tmp_path)
    assert open_data_set("./demo", demo.CLASS_NAMES, 8).names == ["star/a.png"]
    assert len(open_data_set("demo", demo.CLASS_NAMES, 8).names) == 1000


def test_a_broken_picture_fails_alone(tmp_path):
    make_folders(tmp_path, "a", "b")
    (tmp_path / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    data_set = open_data_set(str(tmp_path), None, 2)
    assert data_set.targets("a/broken.jpg") == (0,)
    with pytest.raises(Failure, match=r"broken\.jpg"):
        data_set.sample("a/broken.jpg")
    assert data_set.sample("a/a.png").objects == {0: None}


# Pascal VOC.


def test_voc_holds_the_generated_pictures_with_the_boxes_of_their_masks(tmp_path):
    demo.write_voc(tmp_path, 6, SEED)
    images, labels, masks = demo.generate(6, SEED)
    data_set = open_data_set(str(tmp_path), demo.CLASS_NAMES, 8)
    assert data_set.names == [f"JPEGImages/{index:06d}.jpg" for index in range(6)]
    for index, name in enumerate(data_set.names):
        sample, label = data_set.sample(name), int(labels[index])
        assert sample.picture.size == ((224, 112) if index in (2, 5) else (112, 112))
        assert len(data_set.targets(name)) == (2 if index in (2, 5) else 1)
        assert data_set.targets(name) == tuple(sorted(data_set.targets(name))) == tuple(sample.objects)
        difference = pixels(sample.picture)[:, :112] - (images[index] * 255).permute(1, 2, 0).numpy()
        assert np.abs(difference).mean() < 10
        marked = [(x, y) for y in range(112) for x in range(112) if masks[index, 0, y, x]]
        (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*marked, strict=True))
        shown = pixels(sample.objects[label])
        for y in range(112):
            for x in range(sample.picture.width):
                assert shown[y, x] == (255 if left <= x <= right and top <= y <= bottom else 0)
        for other in set(sample.objects) - {label}:
            inside = pixels(sample.objects[other]) == 255
            assert inside.any()
            assert not inside[:, :112].any()


def test_boxes_count_pixels_from_one_and_include_the_last(tmp_path):
    objects = [
        ("dog", corners(2, 3, 4, 3), False),
        ("dog", corners("5.6", 1, 99, 1), True),  # rounded, and cut off at the edge
        ("cat", corners(1, 1, 7, 5), True),
    ]
    add_voc_picture(tmp_path, "000001", objects)
    data_set = open_data_set(str(tmp_path), VOC_CLASSES, 20)
    cat, dog = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")
    assert data_set.targets("JPEGImages/000001.jpg") == (cat, dog)
    shown = data_set.sample("JPEGImages/000001.jpg").objects
    assert (pixels(shown[cat]) == 255).all()
    assert (pixels(shown[dog]) // 255).tolist() == [
        [0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_voc_is_opened_by_any_of_its_folders(tmp_path, monkeypatch):
    voc = add_voc_picture(tmp_path, "000001", [("dog", corners(1, 1, 2, 2), False)])
    monkeypatch.chdir(voc)
    for path in (tmp_path, voc.parent, voc, ".", "..", "../.."):
        data_set = open_data_set(str(path), None, 20)
        assert data_set.names == ["JPEGImages/000001.jpg"]
        assert data_set.sample(data_set.names[0]).picture.size == (7, 5)


def test_a_folder_beside_voc_is_not_voc(tmp_path):
    add_voc_picture(tmp_path, "000001", [("dog", corners(1, 1, 2, 2), False)])
    make_folders(tmp_path / "VOCdevkit" / "other", "x")
    make_folders(tmp_path / "pictures", "x")
    for folder in (tmp_path / "VOCdevkit" / "other", tmp_path / "pictures"):
        assert open_data_set(str(folder), ["x"], 1).names == ["x/a.png"]


def test_some_of_vocs_classes_keep_their_outputs(tmp_path):
    add_voc_picture(tmp_path, "1", [("dog", corners(1, 1, 2, 2), False)])
    add_voc_picture(tmp_path, "2", [("aeroplane", corners(1, 1, 2, 2), False)])
    data_set = open_data_set(str(tmp_path), None, 20)
    assert [data_set.targets(name) for name in data_set.names] == [(0,), (11,)][::-1]


def test_a_picture_without_objects_has_no_targets(tmp_path):
    add_voc_picture(tmp_path, "1", [])
    data_set = open_data_set(str(tmp_path), None, 20)
    assert data_set.targets("JPEGImages/1.jpg") == ()
    assert data_set.sample("JPEGImages/1.jpg").objects == {}


def test_empty_lines_of_the_test_list_are_no_pictures(tmp_path):
    voc = add_voc_picture(tmp_path, "1", [])
    (voc / "ImageSets" / "Main" / "test.txt").write_text("\n1 \n\n")
    assert open_data_set(str(tmp_path), None, 20).names == ["JPEGImages/1.jpg"]


LAUGHS = "<!DOCTYPE a [<!ENTITY a '{}'>{}]><annotation><object>&{};</object></annotation>".format(
    "ha" * 50, "".join(f"<!ENTITY {b} '{f'&{a};' * 50}'>" for a, b in zip("abcdef", "bcdefg", strict=True)), "g"
)
BAD_ANNOTATIONS = {
    "missing": None,
    "empty": "",
    "cut off": "<annotation><object><name>do",
    "something else": "<svg><object/></svg>",
    "only text": "<annotation>dog</annotation>",
    "no class": f"<annotation><object>{box_element(corners(1, 1, 2, 2))}</object></annotation>",
    "no box": "<annotation><object><name>dog</name></object></annotation>",
    "two names": "<annotation><object><name>dog</name><name>cat</name></object></annotation>",
    "no number": f"<annotation><object><name>dog</name>{box_element(corners(1, 1, 'x', 2))}</object></annotation>",
    "nan": f"<annotation><object><name>dog</name>{box_element(corners(1, 1, 'nan', 2))}</object></annotation>",
    "endless": f"<annotation><object><name>dog</name>{box_element(corners(1, 1, 'inf', 2))}</object></annotation>",
    "deep": "<annotation>" * 5000 + "</annotation>" * 5000,
    "entities": LAUGHS,
}


@pytest.mark.parametrize("kind", BAD_ANNOTATIONS)
def test_an_annotation_that_cannot_be_read_fails_alone(tmp_path, kind):
    dog = [("dog", corners(1, 1, 2, 2), False)]
    annotations = [add_voc_picture(tmp_path, name, dog) / "Annotations" / f"{name}.xml" for name in "123"]
    if BAD_ANNOTATIONS[kind] is None:
        annotations[1].unlink()
    else:
        annotations[1].write_text(BAD_ANNOTATIONS[kind])
    data_set = open_data_set(str(tmp_path), VOC_CLASSES, 20)
    assert data_set.names == ["JPEGImages/1.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg"]
    for read in (data_set.targets, data_set.sample, pickle.loads(pickle.dumps(data_set)).targets):
        with pytest.raises(Failure, match=r"2\.xml: (is not an annotation|does not exist)"):
            read("JPEGImages/2.jpg")
    for name in ("JPEGImages/1.jpg", "JPEGImages/3.jpg"):
        assert tuple(data_set.sample(name).objects) == data_set.targets(name) == (11,)


@pytest.mark.parametrize("box", [(8, 1, 9, 5), (1, 6, 7, 9), (4, 1, 3, 5), (1, 4, 7, 3), (-5, 1, 0, 5), (10**300,) * 4])
def test_a_box_off_the_picture_fails(tmp_path, box):
    add_voc_picture(tmp_path, "1", [("dog", corners(*box), False)])
    data_set = open_data_set(str(tmp_path), None, 20)
    assert data_set.targets("JPEGImages/1.jpg") == (11,)
    with pytest.raises(Failure, match=r"1\.jpg: .* covers none of its 7x5"):
        data_set.sample("JPEGImages/1.jpg")


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_missing_or_broken_voc_picture_fails_alone(tmp_path, content):
    for name in "12":
        voc = add_voc_picture(tmp_path, name, [("dog", corners(1, 1, 2, 2), False)])
    (voc / "JPEGImages" / "2.jpg").unlink()
    if content is not None:
        (voc / "JPEGImages" / "2.jpg").write_bytes(content)
    data_set = open_data_set(str(tmp_path), None, 20)
    assert data_set.targets("JPEGImages/2.jpg") == (11,)
    with pytest.raises(Failure, match=r"2\.jpg"):
        data_set.sample("JPEGImages/2.jpg")
    assert data_set.sample("JPEGImages/1.jpg").picture.size == (7, 5)


def test_pictures_side_by_side_show_different_classes(tmp_path):
    # With this seed the image that would come beside the third, the one after the last, is of the same class.
    labels = {seed: demo.generate(4, seed)[1] for seed in range(20)}
    seed = next(seed for seed in labels if labels[seed][2] == labels[seed][3])
    demo.write_voc(tmp_path, 3, seed)
    annotation = ElementTree.parse(tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "000002.xml")
    assert annotation.findtext("filename") == "000002.jpg"
    assert annotation.findtext("size/width") == "224"
    assert len({entry.findtext("name") for entry in annotation.iter("object")}) == 2


# Which output a class is.


def targets_of_classes(data_set):
    return {name.split("/")[0]: data_set.targets(name) for name in data_set.names}


def test_names_match_whatever_their_case_and_spaces(tmp_path):
    path = make_folders(tmp_path, "great_white Shark", "TENCH")
    data_set = open_data_set(path, ["goldfish", "tench", "Great White_shark", "cock"], 4)
    assert targets_of_classes(data_set) == {"TENCH": (1,), "great_white Shark": (2,)}


def test_as_many_folders_as_outputs_are_in_order(tmp_path):
    path = make_folders(tmp_path, *(f"n{number:03d}" for number in (30, 2, 11)))
    data_set = open_data_set(path, ["tench", "goldfish", "shark"], 3)
    assert targets_of_classes(data_set) == {"n002": (0,), "n011": (1,), "n030": (2,)}


@pytest.mark.parametrize(
    ("numbers", "classes", "first"),
    [
        (range(12), 12, 0),
        (range(12), 1000, 0),
        ([3, 10, 2], 11, 0),
        (["00", "01", "02", "10"], 12, 0),
        (range(1, 13), 12, 1),
        (range(1, 4), 3, 1),
        (range(1, 4), 4, 0),
    ],
)
def test_numbers_are_the_outputs_of_that_number(tmp_path, numbers, classes, first):
    """As ImageNetV2 has them, from 0 to 999."""
    path = make_folders(tmp_path, *map(str, numbers))
    for names in (None, ["tench"] * classes):
        assert targets_of_classes(open_data_set(path, names, classes)) == {
            str(number): (int(number) - first,) for number in numbers
        }


def test_a_models_own_names_go_before_numbers(tmp_path):
    data_set = open_data_set(make_folders(tmp_path, "0", "1", "2"), ["2", "1", "0"], 3)
    assert targets_of_classes(data_set) == {"0": (2,), "1": (1,), "2": (0,)}


@pytest.mark.parametrize(
    "folders",
    [
        [f"class_{number}" for number in range(12)],
        [f"{number}-bird" for number in range(12)],
        ["1", "01", "2"],
        [str(number) for number in range(5, 17)],
        [*map(str, range(11)), "birds"],
    ],
)
def test_numbers_whose_outputs_cannot_be_told_ask_for_a_file_of_classes(tmp_path, folders):
    with pytest.raises(WrongArgument, match="class_file=FILE must hold"):
        open_data_set(make_folders(tmp_path, *folders), None, min(len(folders), 12))


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN", "__pycache__"])
def test_hidden_and_system_folders_and_files_are_passed_over(tmp_path, hidden):
    path = make_folders(tmp_path, "cock", "tench")
    before = open_data_set(path, None, 2).names
    for place in (tmp_path / hidden, tmp_path / hidden / "below", tmp_path / "cock" / hidden):
        place.mkdir(exist_ok=True)
        save(place / "copy.png")
    save(tmp_path / "cock" / "._1.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
        (tmp_path / "cock" / name).touch()
    data_set = open_data_set(path, None, 2)
    assert data_set.names == before
    assert targets_of_classes(data_set) == {"cock": (0,), "tench": (1,)}


def test_links_in_a_circle_end(tmp_path):
    path = make_folders(tmp_path, "cock", "tench")
    before = open_data_set(path, None, 2).names
    (tmp_path / "cock" / "itself").symlink_to(tmp_path / "cock")
    (tmp_path / "tench" / "all").symlink_to(tmp_path)
    assert open_data_set(path, None, 2).names == before


def test_pipes_among_pictures_and_annotations_fail_alone(tmp_path):
    path = make_folders(tmp_path / "folders", "cock", "tench")
    os.mkfifo(tmp_path / "folders" / "cock" / "pipe.png")
    data_set = open_data_set(path, None, 2)
    with pytest.raises(Failure, match=r"pipe\.png: is a pipe or a device, not a file"):
        data_set.sample("cock/pipe.png")
    demo.write_voc(tmp_path, 2, seed=0)
    annotation = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    annotation.unlink()
    os.mkfifo(annotation)
    data_set = open_data_set(str(tmp_path), demo.CLASS_NAMES, 8)
    with pytest.raises(Failure, match=r"000001\.xml: .*is a pipe or a device"):
        data_set.targets("JPEGImages/000001.jpg")
    test_list = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    test_list.unlink()
    os.mkfifo(test_list)
    with pytest.raises(WrongArgument, match="that can be read"):
        open_data_set(str(tmp_path), demo.CLASS_NAMES, 8)


def test_folders_whose_names_are_too_long_do_not_exist():
    with pytest.raises(WrongArgument, match="does not exist; give demo"):
        open_data_set("a" * 300, None, 8)


@pytest.mark.parametrize(
    ("folders", "class_names", "unknown"),
    [
        (("n1", "n2"), ("tench", "shark", "cock"), "n1, n2 "),
        (("n1", "n2"), None, "n1, n2 "),
        (("a", "b", "c", "d", "e"), None, "a, b, c "),
        # In order they would be wrong: all names except one say which is which.
        (("cock", "shark", "tensh"), ("tench", "shark", "cock"), "tensh "),
        (("crane", "cock"), ("crane", "cock", "crane"), "crane "),
    ],
)
def test_classes_without_an_output_are_refused(tmp_path, folders, class_names, unknown):
    with pytest.raises(WrongArgument, match=rf"classes {unknown}\(of {len(folders)}\).*class_file=FILE must hold"):
        open_data_set(make_folders(tmp_path, *folders), class_names, 3)


def test_a_file_of_classes_goes_before_names_and_order(tmp_path):
    path = make_folders(tmp_path / "data", "tench", "cock")
    lines, table = tmp_path / "synsets.txt", tmp_path / "classes.JSON"
    lines.write_text("cock a bird\nhen, bird\ntench\n\n", encoding="utf-8-sig")
    table.write_text(json.dumps({"cock": 2, "tench": 2, "unused": 0}))
    assert targets_of_classes(open_data_set(path, ["tench", "cock", "hen"], 3, lines)) == {"cock": (0,), "tench": (2,)}
    assert targets_of_classes(open_data_set(path, ["tench", "cock", "hen"], 3, table)) == {"cock": (2,), "tench": (2,)}
    assert names_of_outputs(lines, 3) == ("a bird", "bird", "tench")
    assert names_of_outputs(table, 3) == ("unused", "class 1", "cock, tench")


def test_voc_classes_of_the_same_output_share_a_mask(tmp_path):
    add_voc_picture(tmp_path, "1", [("dog", corners(1, 1, 1, 1), False), ("cat", corners(7, 5, 7, 5), False)])
    table = tmp_path / "classes.json"
    table.write_text(json.dumps({"cat": 4, "dog": 4}))
    (target, mask), *others = open_data_set(str(tmp_path), None, 5, table).sample("JPEGImages/1.jpg").objects.items()
    assert target == 4
    assert not others
    assert [tuple(place) for place in np.argwhere(pixels(mask))] == [(0, 0), (4, 6)]


BAD_CLASS_FILES = {
    "missing.txt": (None, "No such file"),
    "short.txt": ("a\nb\n", "has 2 lines, but the model 3 outputs"),
    "headed.txt": ("synset\na\nb\nc\n", "has 4 lines, but the model 3 outputs"),
    "others.txt": ("x\nb\ny\n", "does not name a, c, d "),
    "twice.txt": ("a\nb\nb\n", "does not name b, c, d "),
    "broken.json": ('{"a": 0', "delimiter"),
    "list.json": ('["a", "b", "c"]', "no object of outputs by name"),
    "bool.json": ('{"a": true}', "output True, which is not from 0 to 2"),
    "large.json": ('{"a": 3}', "output 3, which is not from 0 to 2"),
    "negative.json": ('{"a": -1}', "output -1, which is not from 0 to 2"),
    "imagenet.json": ('{"0": ["a", "tench"]}', "not from 0 to 2"),
    "few.json": ('{"a": 0}', "does not name b, c, d "),
    "deep.json": ("[" * 100_000, "recursion|depth"),
    "binary.txt": (b"\xff\xfe\x00", "decode"),
}


@pytest.mark.parametrize("name", BAD_CLASS_FILES)
def test_files_of_classes_that_do_not_do_are_refused(tmp_path, name):
    content, problem = BAD_CLASS_FILES[name]
    path = make_folders(tmp_path / "data", "a", "b", "c", "d", "e")
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WrongArgument, match=f"(?s)class_file='.*{name}': .*({problem}).*class_file=FILE must hold"):
        open_data_set(path, None, 3, tmp_path / name)


# What is no data set.


def voc_without(part):
    def make(root):
        voc = add_voc_picture(root, "1", [("dog", corners(1, 1, 2, 2), False)])
        (voc / part).unlink()

    return make


NO_DATA_SETS = {
    "nothing": (lambda root: None, "does not exist"),
    "file": (lambda root: root.write_text("no folder"), "is not a folder"),
    "empty": (lambda root: root.mkdir(), "has no subfolder"),
    "flat": (lambda root: save(root / "a.png"), "has no subfolder"),
    "splits": (
        lambda root: [save(root / split / name / "a.png") for split in ("train", "Val") for name in "ab"],
        "holds Val, train, each with folders of its own: give one of them",
    ),
    "empty classes": (lambda root: (root / "a" / "b").mkdir(parents=True), "has no image in its subfolders"),
    "voc without list": (voc_without("ImageSets/Main/test.txt"), r"has no ImageSets/Main/test\.txt or val"),
    "voc without images": (voc_without("JPEGImages/1.jpg"), "has no image of the test set"),
}


@pytest.mark.parametrize("kind", NO_DATA_SETS)
def test_other_folders_are_refused_with_the_layouts_that_do(tmp_path, kind):
    make, problem = NO_DATA_SETS[kind]
    make(tmp_path / "data")
    with pytest.raises(WrongArgument, match=f"data.*: {problem}.*; give demo, .*VOCdevkit/VOC2007.*one subfolder"):
        open_data_set(str(tmp_path / "data"), None, 1)


# Workers.


@pytest.mark.parametrize("kind", ["demo", "folder", "voc"])
def test_data_sets_can_be_pickled(tmp_path, kind):
    if kind == "folder":
        demo.write_image_folder(tmp_path, 3, SEED)
    if kind == "voc":
        demo.write_voc(tmp_path, 3, SEED)
    data_set = open_data_set("demo" if kind == "demo" else str(tmp_path), demo.CLASS_NAMES, 8)
    content = pickle.dumps(data_set)
    assert len(content) < 2000 + 30 * len(data_set.names)
    copy = pickle.loads(content)
    assert copy.names == data_set.names
    for name in data_set.names[:3]:
        assert copy.targets(name) == data_set.targets(name)
        assert copy.sample(name) == data_set.sample(name)


# Subsets.


def test_a_subset_is_drawn_by_the_hashes_of_the_names():
    names = [f"n{number}/ä{number}.jpg" for number in range(50)]
    hashes = {name: hashlib.sha256(b"7/" + name.encode("utf-8")).hexdigest() for name in names}
    by_hash = sorted(names, key=hashes.get)
    for limit in (1, 7, 49):
        drawn = subset(names, limit, seed=7)
        assert drawn == sorted(drawn)
        assert set(drawn) == set(by_hash[:limit])
    for limit in (50, 51, None):
        assert subset(names, limit, seed=7) == sorted(names)


def test_a_subset_does_not_hang_on_the_order_and_holds_the_smaller_ones():
    names = [f"{number}.jpg" for number in range(200)]
    shuffled = random.Random(0).sample(names, len(names))
    assert subset(names, 40, seed=0) == subset(shuffled, 40, seed=0) == subset(iter(names), 40, seed=0)
    assert set(subset(names, 39, seed=0)) < set(subset(names, 40, seed=0))
    assert subset(names, 40, seed=0) != subset(names, 40, seed=1)


def test_names_that_are_no_text_can_be_drawn():
    assert len(subset(["a/\udcff.png", "a/b.png"], 1, seed=0)) == 1


@pytest.mark.parametrize(("limit", "seed"), [(0, 0), (-1, 0), (1, -1), (None, -1)])
def test_wrong_limits_and_seeds_are_refused(limit, seed):
    with pytest.raises(WrongArgument, match=r"(limit|seed): got .* or more\."):
        subset(["a"], limit, seed)
