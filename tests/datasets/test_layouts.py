"""The layouts with objects: tables, masks, YOLO's, COCO's, and VOC's of other classes."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from captum_unioncam.datasets.base import difficult
from captum_unioncam.datasets.boxes import mask_of_boxes
from captum_unioncam.datasets.open import open_data_set, picture_of
from captum_unioncam.system.errors import Failure, WrongArgument
from tests.datasets.test_data_sets import add_voc_picture, corners, pixels

SIZE = (10, 6)
NAMES = ["cat", "dog", "owl"]


def save(path, colour="red", size=SIZE, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def save_mask(path, marked, mode="L", size=SIZE):
    """A mask whose pixels in the (left, top, right, bottom) are marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new(mode, size)
    mask.paste(1 if mode in "L1P" else (0, 0, 1), marked)
    mask.save(path)


def litter(*folders):
    """What macOS and Windows leave in folders and archives."""
    for folder in folders:
        save(folder / "._a.png")
        save(folder / ".trash" / "a.png")
        save(folder / "__MACOSX" / "a.png")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.txt", "._a.xml", "._a.json"):
            (folder / name).write_bytes(b"\x00\x05")


def rectangle(left, top, right, bottom, size=SIZE):
    """Pixel by pixel: 255 where the centre is within the edges."""
    rows = [
        [255 if left <= x + 0.5 < right and top <= y + 0.5 < bottom else 0 for x in range(size[0])]
        for y in range(size[1])
    ]
    return np.array(rows)


def objects_of(data_set, name):
    objects = data_set.sample(name).objects
    assert tuple(objects) == data_set.targets(name)
    return {target: None if mask is None else pixels(mask) for target, mask in objects.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for target, mask in expected.items():
        assert np.array_equal(found[target], mask)


# Boxes.


@pytest.mark.parametrize("seed", range(5))
def test_a_box_marks_the_pixels_whose_centres_it_holds(seed):
    generator = np.random.default_rng(seed)
    x0, x1 = sorted(generator.uniform(-3, 13, 2))
    y0, y1 = sorted(generator.uniform(-3, 9, 2))
    x1, y1 = max(x1, x0 + 1, 1.5), max(y1, y0 + 1, 1.5)
    x0, y0 = min(x0, 8), min(y0, 4)
    assert np.array_equal(pixels(mask_of_boxes(SIZE, [(x0, y0, x1, y1)])), rectangle(x0, y0, x1, y1))


@pytest.mark.parametrize("start", [2.1, 2.4, 2.6, 2.7])
def test_a_box_thinner_than_a_pixel_marks_one(start):
    (row,) = np.argwhere(pixels(mask_of_boxes(SIZE, [(start, 3.3, start + 0.2, 3.4)])))
    assert row.tolist() == [3, 2]


# Tables.


HEADER = "path,label,x0,y0,x1,y1\n"


def write_table(folder, text, pictures=("a.png", "sub/b.png")):
    for name in pictures:
        save(folder / name)
    (folder / "boxes.csv").write_text(text, encoding="utf-8")
    return str(folder / "boxes.csv")


def test_a_table_has_a_row_for_each_object(tmp_path):
    path = write_table(
        tmp_path,
        "\ufeffid,y0,x0,y1,x1,label,path\n1,1,2,3,4,dog,a.png\n2,0,0,2.6,1.4,cat,./a.png\n3,4,5,6,7,dog,a.png\n"
        '4,0,0,6,10,owl,"sub/b.png"\n',
    )
    data_set = open_data_set(path, NAMES, 3)
    assert data_set.names == ["a.png", "sub/b.png"]
    dogs = np.maximum(rectangle(2, 1, 4, 3), rectangle(5, 4, 7, 6))
    same(objects_of(data_set, "a.png"), {0: rectangle(0, 0, 1.4, 2.6), 1: dogs})
    same(objects_of(data_set, "sub/b.png"), {2: np.full((6, 10), 255)})


def test_labels_that_are_numbers_are_outputs(tmp_path):
    path = write_table(tmp_path, HEADER + "a.png,7,0,0,1,1\nsub/b.png,0,0,0,1,1\n")
    data_set = open_data_set(path, NAMES * 4, 12)
    assert [data_set.targets(name) for name in data_set.names] == [(7,), (0,)]


BAD_TABLES = {
    "empty": ("", "line 1 does not name the column path; begin with path,label,x0,y0,x1,y1"),
    "no header": ("a.png,dog,0,0,1,1\n", "line 1 does not name the column path"),
    "half a header": ("path,label,x0,y0,x1\n", "line 1 does not name the column y1"),
    "no rows": (HEADER, "has no row below its header"),
    "few values": (HEADER + "a.png,dog,0,0,1,1\na.png,dog,0,0\n", "line 3: has not as many values"),
    "many values": (HEADER + "a.png,dog,0,0,1,1,5\n", "line 2: has not as many values"),
    "no number": (HEADER + "\na.png,dog,0,zero,1,1\n", "line 3: y0='zero' is no number"),
    "no box": (HEADER + "a.png,dog,,,,\n", "line 2: x0='' is no number"),
    "nan": (HEADER + "a.png,dog,0,0,nan,1\n", "line 2: x1='nan' is not finite"),
    "endless": (HEADER + "a.png,dog,0,0,1,inf\n", "line 2: y1='inf' is not finite"),
    "empty box": (HEADER + "a.png,dog,0,1,1,1\n", "line 2: the box is empty"),
    "size for corner": (HEADER + "a.png,dog,8,1,2,3\n", "line 2: the box is empty; give x0 below x1"),
    "no path": (HEADER + " ,dog,0,0,1,1\n", "line 2: path is empty"),
    "no label": (HEADER + "a.png,,0,0,1,1\n", "line 2: label is empty"),
    "quotes": (HEADER + '"a.png,dog,0,0,1,1\n', "unexpected end of data"),
    "binary": (b"\xff\xfe\x00", "decode"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_tables_that_cannot_be_read_are_refused_with_the_line(tmp_path, kind):
    content, problem = BAD_TABLES[kind]
    file = tmp_path / "boxes.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WrongArgument, match=f"boxes.csv: .*{problem}"):
        open_data_set(str(file), NAMES, 3)


def test_a_box_off_its_picture_fails_alone(tmp_path):
    data_set = open_data_set(write_table(tmp_path, HEADER + "a.png,dog,10,0,12,3\nsub/b.png,dog,0,0,1,1\n"), NAMES, 3)
    with pytest.raises(Failure, match=r"a\.png: .* covers none of its 10x6"):
        data_set.sample("a.png")
    same(objects_of(data_set, "sub/b.png"), {1: rectangle(0, 0, 1, 1)})


def test_a_table_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "boxes.csv")
    with pytest.raises(WrongArgument, match="is a pipe or a device"):
        open_data_set(str(tmp_path / "boxes.csv"), NAMES, 3)


# Masks.


def test_masks_are_beside_the_pictures_of_a_class_or_in_folders_like_theirs(tmp_path):
    for name in ("cat/a.jpg", "cat/deep/b.webp", "dog/c.jpg", "dog/d.png"):
        save(tmp_path / name)
    save_mask(tmp_path / "cat/masks/a.png", (1, 2, 3, 4))
    save_mask(tmp_path / "cat/deep/masks/b.png", (0, 0, 5, 1))
    save_mask(tmp_path / "masks/dog/c.png", (4, 4, 10, 6))
    litter(tmp_path, tmp_path / "cat", tmp_path / "cat/masks", tmp_path / "masks")
    data_set = open_data_set(str(tmp_path), None, 2)
    assert data_set.names == ["cat/a.jpg", "cat/deep/b.webp", "dog/c.jpg", "dog/d.png"]
    same(objects_of(data_set, "cat/a.jpg"), {0: rectangle(1, 2, 3, 4)})
    same(objects_of(data_set, "cat/deep/b.webp"), {0: rectangle(0, 0, 5, 1)})
    same(objects_of(data_set, "dog/c.jpg"), {1: rectangle(4, 4, 10, 6)})
    assert objects_of(data_set, "dog/d.png") == {1: None}


def test_a_class_may_be_called_masks(tmp_path):
    save(tmp_path / "masks" / "a.png")
    save(tmp_path / "shoes" / "a.png")
    data_set = open_data_set(str(tmp_path), ["masks", "shoes"], 2)
    assert [data_set.targets(name) for name in data_set.names] == [(0,), (1,)]
    assert objects_of(data_set, "shoes/a.png") == {1: None}


def test_pictures_in_a_folder_have_masks_of_several_classes(tmp_path):
    for name in ("a.jpg", "b.png", "c.png"):
        save(tmp_path / name)
    save_mask(tmp_path / "masks/owl/a.png", (1, 2, 3, 4))
    save_mask(tmp_path / "masks/cat/a.png", (5, 0, 10, 6))
    save_mask(tmp_path / "masks/cat/b.png", (0, 0, 1, 1))
    litter(tmp_path, tmp_path / "masks", tmp_path / "masks/owl")
    data_set = open_data_set(str(tmp_path), NAMES, 3)
    assert data_set.names == ["a.jpg", "b.png"]
    same(objects_of(data_set, "a.jpg"), {0: rectangle(5, 0, 10, 6), 2: rectangle(1, 2, 3, 4)})
    same(objects_of(data_set, "b.png"), {0: rectangle(0, 0, 1, 1)})


def test_masks_without_classes_are_for_a_model_of_one_output(tmp_path):
    save(tmp_path / "a.jpg")
    save_mask(tmp_path / "masks/a.png", (1, 2, 3, 4))
    same(objects_of(open_data_set(str(tmp_path), None, 1), "a.jpg"), {0: rectangle(1, 2, 3, 4)})
    with pytest.raises(WrongArgument, match="has images with masks but no classes, and the model 3 outputs"):
        open_data_set(str(tmp_path), None, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_what_is_not_zero_is_an_object(tmp_path, mode):
    save(tmp_path / "cat/a.png")
    values = np.zeros((6, 10), np.uint16)
    values[2:4, 1:3] = 1
    (tmp_path / "cat/masks").mkdir()
    if mode == "I;16":
        mask = Image.fromarray(values)
    elif mode in ("RGB", "RGBA", "LA"):
        opaque = [Image.new("L", SIZE, 255)] if mode.endswith("A") else []
        colours = [Image.new("L", SIZE)] * 2 if mode.startswith("RGB") else []
        mask = Image.merge(mode, [*colours, Image.fromarray(values.astype(np.uint8)), *opaque])
    else:
        mask = Image.new(mode, SIZE)
        # Every colour of the palette is black.
        mask.putpalette([0, 0, 0] * 2) if mode == "P" else None
        mask.paste(1, (1, 2, 3, 4))
    mask.save(tmp_path / "cat/masks/a.png")
    same(objects_of(open_data_set(str(tmp_path), None, 1), "cat/a.png"), {0: rectangle(1, 2, 3, 4)})


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: save_mask(path, (0, 0, 1, 1), size=(6, 10)), "is 6x10, but its image 10x6; give its own mask"),
        (lambda path: path.write_text("no mask"), "is not an image in a known format"),
    ],
)
def test_a_mask_that_does_not_do_fails_alone(tmp_path, make, problem):
    save(tmp_path / "cat/a.png")
    save(tmp_path / "cat/b.png")
    (tmp_path / "cat/masks").mkdir()
    make(tmp_path / "cat/masks/a.png")
    data_set = open_data_set(str(tmp_path), None, 1)
    with pytest.raises(Failure, match=rf"masks.a\.png: {problem}"):
        data_set.sample("cat/a.png")
    assert objects_of(data_set, "cat/b.png") == {0: None}


# YOLO's.


def write_yolo(folder, texts, size=SIZE):
    for name, text in texts.items():
        save(folder / "images" / f"{name}.jpg", size=size)
        place = folder / "labels" / f"{name}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            place.write_text(text)
    return str(folder)


def test_yolos_boxes_are_parts_of_the_picture(tmp_path):
    boxes = "2 0.5 0.5 0.4 0.5\n0 .05 .25 .1 .5\n\n2 0.9 0.9 0.2 0.2\n"
    path = write_yolo(tmp_path, {"val/a": boxes, "val/b": "", "c": None, "d": "1 1 1 1 1"})
    (tmp_path / "classes.txt").write_text("owl\ndog\ncat\n")
    litter(tmp_path, tmp_path / "images", tmp_path / "images/val", tmp_path / "labels")
    data_set = open_data_set(path, NAMES, 3)
    assert data_set.names == ["images/d.jpg", "images/val/a.jpg"]
    cats = np.maximum(rectangle(3, 1.5, 7, 4.5), rectangle(8, 4.8, 10, 6))
    same(objects_of(data_set, "images/val/a.jpg"), {0: cats, 2: rectangle(0, 0, 1, 3)})
    same(objects_of(data_set, "images/d.jpg"), {1: rectangle(5, 3, 15, 9)})


YAMLS = {
    "list": "path: .\nnames: [owl, 'dog', \"cat\"]\nnc: 3\n",
    "long list": "nc: 3\nnames: [owl,\n  dog,  # the second\n  cat]\n",
    "items": "names:\n- owl\n- dog\n- 'cat'\nnc: 3",
    "indented items": "# classes\nnames:\n  - owl\n  - dog\n\n  - cat\n\nval: images",
    "table": "names:\n  0: owl  # a bird\n  1: dog\n  2: 'cat'\ndownload: none\n",
    "short table": "names: {0: owl, 1: dog, 2: cat}",
}


@pytest.mark.parametrize("kind", YAMLS)
@pytest.mark.parametrize("above", [False, True])
def test_yolos_classes_are_named_by_data_yaml(tmp_path, kind, above):
    path = write_yolo(tmp_path / "val", {"a": "2 .5 .5 1 1\n", "b": "0 .5 .5 1 1\n"})
    (tmp_path / ("data.yaml" if above else "val/data.yaml")).write_text(YAMLS[kind])
    data_set = open_data_set(path, NAMES, 3)
    assert [data_set.targets(name) for name in data_set.names] == [(0,), (2,)]


def test_quotes_and_commas_in_names_are_read(tmp_path):
    path = write_yolo(tmp_path, {"a": "0 .5 .5 1 1\n", "b": "1 .5 .5 1 1\n"})
    (tmp_path / "data.yaml").write_text("names: ['cat''s, tail', \"a # b\"]\n")
    with pytest.raises(WrongArgument, match=r"classes (a # b, cat's, tail|cat's, tail, a # b)"):
        open_data_set(path, NAMES, 3)


@pytest.mark.parametrize("text", ["nc: 3\n", "names:\nnc: 3\n", "names:\n  1: a\n  2: b\n", "names: []"])
def test_a_data_yaml_without_names_is_refused(tmp_path, text):
    path = write_yolo(tmp_path, {"a": "0 .5 .5 1 1\n"})
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(WrongArgument, match=r"data.yaml: names no classes .*; give classes.txt"):
        open_data_set(path, NAMES, 3)


def test_yolos_numbers_are_outputs_where_nothing_names_them(tmp_path):
    data_set = open_data_set(write_yolo(tmp_path, {"a": "10 .5 .5 1 1\n2 .5 .5 1 1\n"}), None, 12)
    assert data_set.targets("images/a.jpg") == (2, 10)


BAD_LINES = {
    "0 .5 .5 1": "line 2: has 4 values; give class",
    "0 .5 .5 1 1 .9": "line 2: has 6 values",
    "0 5 3 4 3": "line 2: the box is not in parts",
    "0 .5 .5 0 1": "line 2: the box is not in parts",
    "0 .5 nan 1 1": "line 2: the box is not in parts",
    "0 .5 x 1 1": "line 2: could not convert string to float",
    "3 .5 .5 1 1": "line 2: '3' is not one of the 3 classes' numbers",
    "-1 .5 .5 1 1": "line 2: '-1' is not one",
    "dog .5 .5 1 1": "line 2: 'dog' is not one",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_line_that_cannot_be_read_fails_alone(tmp_path, line):
    path = write_yolo(tmp_path, {"a": f"0 .5 .5 1 1\n{line}\n", "b": "1 .5 .5 1 1\n"})
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    data_set = open_data_set(path, NAMES, 3)
    with pytest.raises(Failure, match=rf"a\.txt: {BAD_LINES[line]}"):
        data_set.targets("images/a.jpg")
    assert data_set.targets("images/b.jpg") == (1,)


def test_class_folders_may_be_called_images_and_labels(tmp_path):
    save(tmp_path / "images/a.png")
    save(tmp_path / "labels/a.png")
    assert open_data_set(str(tmp_path), None, 2).names == ["images/a.png", "labels/a.png"]


# COCO's.


CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "owl"}]


def annotation(number, image, category, **how):
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, **how}


def write_coco(folder, annotations, pictures="val2017", file="annotations/instances_val2017.json"):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in (1, 2, 3)]
    for image in images:
        save(folder / pictures / image["file_name"])
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / file).write_text(json.dumps(content))
    return str(folder)


# By columns: 13 zeros, 2 ones, and so on.
RLE = {"size": [6, 10], "counts": [13, 2, 4, 2, 39]}
SQUARE = [[2, 1, 7, 1, 7, 5, 2, 5]]


def coco_annotations():
    crowd = {"size": [6, 10], "counts": [0, 60]}
    return [
        annotation(1, 1, 18, segmentation=SQUARE, bbox=[0, 0, 10, 6]),
        annotation(2, 1, 90, segmentation=RLE, bbox=[0, 0, 10, 6]),
        annotation(3, 1, 17, segmentation=crowd, bbox=[0, 0, 10, 6], iscrowd=1),
        annotation(4, 1, 18, segmentation=crowd, bbox=[0, 0, 10, 6], iscrowd=1),
        annotation(5, 2, 17, bbox=[1, 2, 3, 2.5]),
        annotation(6, 2, 17, segmentation=[], bbox=[8, 0, 2, 1]),
        annotation(7, 3, 17, segmentation=crowd, bbox=[0, 0, 10, 6], iscrowd=1),
    ]


@pytest.mark.parametrize(
    ("pictures", "file"),
    [
        ("val2017", "annotations/instances_val2017.json"),
        ("images/val2017", "annotations/instances_val2017.json"),
        ("images", "instances.json"),
        (".", "instances.json"),
        ("images", "instances_default.json"),
    ],
)
@pytest.mark.parametrize("by_file", [False, True])
def test_cocos_objects_are_segmented_or_boxed_and_crowds_left_out(tmp_path, pictures, file, by_file):
    path = write_coco(tmp_path, coco_annotations(), pictures, file)
    litter(tmp_path, tmp_path / pictures)
    data_set = open_data_set(str(tmp_path / file) if by_file else path, NAMES, 3)
    first, second = (f"{pictures}/{i}.jpg".removeprefix("./") for i in (1, 2))
    assert data_set.names == [first, second]
    owl = np.zeros((6, 10), int)
    owl[1:3, 2] = owl[1:3, 3] = 255
    same(objects_of(data_set, first), {1: rectangle(2, 1, 7, 5), 2: owl})
    same(objects_of(data_set, second), {0: np.maximum(rectangle(1, 2, 4, 4.5), rectangle(8, 0, 10, 1))})


def test_cocos_categories_are_in_the_order_of_their_numbers(tmp_path):
    data_set = open_data_set(write_coco(tmp_path, coco_annotations()), ["x", "y", "z"], 3)
    assert data_set.targets("val2017/1.jpg") == (1, 2)


def test_several_files_of_instances_ask_for_one(tmp_path):
    path = write_coco(tmp_path, coco_annotations())
    write_coco(tmp_path, coco_annotations(), "train2017", "annotations/instances_train2017.json")
    with pytest.raises(WrongArgument, match=r"holds instances_train2017.json, instances_val2017.json: give one"):
        open_data_set(path, NAMES, 3)
    file = tmp_path / "annotations/instances_train2017.json"
    assert open_data_set(str(file), NAMES, 3).names == ["train2017/1.jpg", "train2017/2.jpg"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"images": [], "annotations": [{}], "categories": []}', '{"a": 1}', "[" * 10**5]
)
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(WrongArgument, match=r"instances.json: "):
        open_data_set(str(tmp_path), NAMES, 3)


def test_cocos_pictures_must_be_there_and_of_the_annotated_size(tmp_path):
    path = write_coco(tmp_path, coco_annotations())
    save(tmp_path / "val2017/2.jpg", size=(6, 10))
    data_set = open_data_set(path, NAMES, 3)
    with pytest.raises(Failure, match=r"2\.jpg: is 6x10, but annotated as 10x6"):
        data_set.sample("val2017/2.jpg")
    assert len(data_set.sample("val2017/1.jpg").objects) == 2
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(WrongArgument, match=r"none of its first images is in .*val2017"):
        open_data_set(path, NAMES, 3)


def test_without_pycocotools_its_extra_is_named(tmp_path, monkeypatch):
    path = write_coco(tmp_path, coco_annotations())
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.coco", None)
    with pytest.raises(Failure, match=r"pip install 'captum-unioncam\[coco\]'"):
        open_data_set(path, NAMES, 3)


# VOC's.


def move_voc(tmp_path, to):
    """VOC's folder elsewhere, without lists."""
    voc = tmp_path / "VOCdevkit" / "VOC2007"
    for part in ("JPEGImages", "Annotations"):
        (tmp_path / to).mkdir(parents=True, exist_ok=True)
        (voc / part).rename(tmp_path / to / part)
    return tmp_path / to


def test_vocs_layout_may_have_any_folder_and_classes(tmp_path):
    add_voc_picture(tmp_path, "p.1", [("walrus", corners(2, 3, 4, 3), False)])
    add_voc_picture(tmp_path, "2", [("auk", corners(1, 1, 7, 5), False), ("walrus", corners(1, 1, 1, 1), False)])
    folder = move_voc(tmp_path, "birds")
    save(folder / "JPEGImages/2.png", size=(7, 5))
    (folder / "JPEGImages/2.jpg").unlink()
    litter(folder / "JPEGImages", folder / "Annotations")
    data_set = open_data_set(str(folder), ["tit", "walrus", "auk"], 3)
    assert data_set.names == ["JPEGImages/2.png", "JPEGImages/p.1.jpg"]
    same(objects_of(data_set, "JPEGImages/2.png"), {1: rectangle(0, 0, 1, 1, (7, 5)), 2: np.full((5, 7), 255)})
    same(objects_of(data_set, "JPEGImages/p.1.jpg"), {1: rectangle(1, 2, 4, 3, (7, 5))})
    # In the order of their names, or of a list.
    assert open_data_set(str(folder), None, 2).targets("JPEGImages/p.1.jpg") == (1,)
    (folder / "classes.txt").write_text("walrus\nauk\n")
    assert open_data_set(str(folder), None, 2).targets("JPEGImages/p.1.jpg") == (0,)


@pytest.mark.parametrize(("lists", "names"), [(("test", "val"), ["1"]), (("val", "train"), ["2"])])
def test_vocs_test_list_goes_before_its_validation_list(tmp_path, lists, names):
    for name in "123":
        voc = add_voc_picture(tmp_path, name, [("dog", corners(1, 1, 2, 2), False)])
    (voc / "ImageSets/Main/test.txt").unlink()
    for split, name in {"test": "1", "val": "2", "train": "3"}.items():
        if split in lists:
            (voc / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n")
    voc.rename(tmp_path / "VOCdevkit" / "VOC2012")
    for path in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        data_set = open_data_set(str(path), None, 20)
        assert data_set.names == [f"JPEGImages/{name}.jpg" for name in names]


# All of them.


def a_table(folder):
    return write_table(folder, HEADER + "a.png,dog,0,0,3,3\nsub/b.png,cat,0,0,1,1\nsub/b.png,dog,0,0,1,1\n")


def masks_in_folders(folder):
    for name in "ab":
        save(folder / f"{name}.png")
        save_mask(folder / f"masks/dog/{name}.png", (0, 0, 2, 2))
    return str(folder)


def yolo(folder):
    path = write_yolo(folder, {"a": "0 .5 .5 1 1\n", "b": "1 .5 .5 1 1\n1 .5 .5 .1 .1\n"})
    (folder / "classes.txt").write_text("dog\ncat\n")
    return path


def coco(folder):
    return write_coco(folder, coco_annotations())


def voc(folder):
    add_voc_picture(folder, "1", [("dog", corners(1, 1, 2, 2), False)])
    add_voc_picture(folder, "2", [("cat", corners(1, 1, 2, 2), False)])
    return str(move_voc(folder, "other"))


@pytest.mark.parametrize("make", [a_table, masks_in_folders, yolo, coco, voc])
def test_every_layout_is_pickled_for_workers_and_shown_in_reports(tmp_path, make):
    path = make(tmp_path)
    data_set = open_data_set(path, NAMES, 3)
    data_set.sample(data_set.names[0])
    content = pickle.dumps(data_set)
    assert len(content) < 2500
    copy = pickle.loads(content)
    assert copy.names == data_set.names
    assert len(copy.names) == 2
    for name in data_set.names:
        assert copy.targets(name) == data_set.targets(name)
        assert copy.sample(name) == data_set.sample(name)
        assert picture_of(path, name) == data_set.sample(name).picture


@pytest.mark.parametrize("name", ["boxes.txt", "other.json5", "nowhere.csv", "nowhere.json"])
def test_other_files_are_refused_with_what_was_looked_for(tmp_path, name):
    if not name.startswith("nowhere"):
        (tmp_path / name).write_text("x")
    with pytest.raises(WrongArgument, match=r"path,label,x0,y0,x1,y1.*instances.*VOC2007.*labels.*masks.*subfolder"):
        open_data_set(str(tmp_path / name), NAMES, 3)


# TorchRay's difficult subset.


def test_difficult_targets_are_small_and_have_distractors(tmp_path):
    rows = {
        "alone": ["dog,0,0,1,1"],
        "two_of_a_class": ["dog,0,0,1,1", "dog,4,4,5,5"],
        "small_and_large": ["dog,0,0,5,2.5", "cat,0,0,10,6"],
        "both_small": ["dog,0,0,1,1", "owl,2,2,6,5"],
        # 15 of 60 pixels are a quarter; together, overlapping boxes cover 14.
        "a_quarter": ["dog,0,0,5,3", "cat,0,0,7,2"],
        "overlapping": ["dog,0,0,7,1", "dog,0,0,7,2", "cat,0,0,10,6"],
    }
    text = "".join(f"{name}.png,{row}\n" for name, of in rows.items() for row in of)
    data_set = open_data_set(write_table(tmp_path, HEADER + text, [f"{name}.png" for name in rows]), NAMES, 3)
    found = {name.removesuffix(".png"): difficult(data_set, name) for name in data_set.names}
    expected = {"alone": (), "two_of_a_class": (), "small_and_large": (1,), "both_small": (1, 2)}
    assert found == {**expected, "a_quarter": (0,), "overlapping": (1,)}


def test_without_boxes_nothing_is_difficult(tmp_path):
    save(tmp_path / "cat/a.png")
    assert difficult(open_data_set(str(tmp_path), NAMES, 3), "cat/a.png") == ()
