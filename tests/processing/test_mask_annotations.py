"""COCO's and SA-1B's files, written by hand as their formats say."""

import json

import numpy as np
import pytest
from PIL import Image

from vistok.processing.mask_annotations import coco_instance_images, coco_panoptic_images, sa1b_images

CATEGORIES = [{"id": 7, "name": "cow", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (5, 4)).save(tmp_path / "images" / name)
    return tmp_path


def write(file, document):
    file.write_text(json.dumps(document))
    return file


def instances(**changes):
    images = [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 5}]
    images.append({"id": 2, "file_name": "b.jpg", "height": 4, "width": 5})
    annotations = [
        {"id": 10, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
        {"id": 11, "image_id": 1, "category_id": 9, "iscrowd": 1, "segmentation": {"size": [4, 5], "counts": [16, 4]}},
        {"id": 12, "image_id": 1, "category_id": 7, "segmentation": {"size": [4, 5], "counts": [4, 2, 14]}},
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES, **changes}


def changed(number, **fields):
    document = instances()
    document["annotations"][number].update(fields)
    return document


class TestInstances:
    def test_polygons_and_run_lengths_are_objects_and_crowds_are_ignored(self, folder):
        first, second = coco_instance_images(write(folder / "i.json", instances()), folder / "images")
        found = first.objects()
        assert found.names == ("cow", "cow") and found.size == (4, 5)
        assert np.argwhere(found.masks[0]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
        assert np.argwhere(found.masks[1]).tolist() == [[0, 1], [1, 1]]
        assert found.ignored[:, 4].all() and found.ignored.sum() == 4
        assert len(second.objects()) == 0 and second.objects().masks.shape == (0, 4, 5)
        assert second.image().size == (5, 4)

    @pytest.mark.parametrize(
        ("name", "field"),
        [("images", "id"), ("annotations", "image_id"), ("categories", "id"), ("categories", "name")],
    )
    def test_an_entry_without_a_field_is_named(self, folder, name, field):
        document = json.loads(json.dumps(instances()))
        del document[name][1][field]
        with pytest.raises(ValueError, match=f"i.json: entry 1 of {name} lacks {field}"):
            coco_instance_images(write(folder / "i.json", document), folder / "images")
        document[name][1] = "cow"
        with pytest.raises(ValueError, match=f"entry 1 of {name} lacks"):
            coco_instance_images(write(folder / "i.json", document), folder / "images")

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ({"size": [5, 4], "counts": [20]}, "annotation 10 of a.jpg: A mask is of size"),
            ({"size": [4, 5], "counts": [20]}, "annotation 10 of a.jpg: its mask is empty"),
            ({"size": [4, 5], "counts": "~"}, "annotation 10 of a.jpg: '~' is no character"),
            ({"size": [4, 5]}, "annotation 10 of a.jpg: 'counts'"),
            ([], "its mask is empty"),
            ("x", "segmentation is a str"),
        ],
    )
    def test_a_mask_that_is_none_is_named(self, folder, segmentation, message):
        file = write(folder / "i.json", changed(0, segmentation=segmentation))
        with pytest.raises(ValueError, match=message):
            coco_instance_images(file, folder / "images")[0].objects()

    def test_empty_masks_are_left_out_if_asked(self, folder):
        file = write(folder / "i.json", changed(0, segmentation={"size": [4, 5], "counts": [20]}))
        assert len(coco_instance_images(file, folder / "images")[0].objects(skip_empty=True)) == 1

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            (instances(images=[]), "annotations of 1 images that it lacks, such as 1"),
            (instances(images=[], annotations=[]), "has no images"),
            ({"images": []}, "lacks 'annotations', 'categories'"),
            ([1], "expected a JSON object"),
            (
                instances(annotations=[{"id": 3, "image_id": 1, "caption": "A cow."}]),
                "annotation 3 has no segmentation",
            ),
            (instances(images=[{"id": 1, "file_name": "a.jpg"}]), r"a.jpg' are \(None, None\)"),
        ],
    )
    def test_what_is_no_instances_file_is_told(self, folder, document, message):
        with pytest.raises(ValueError, match=message):
            coco_instance_images(write(folder / "i.json", document), folder / "images")

    def test_what_is_missing_is_named(self, folder):
        file = write(folder / "i.json", instances())
        (folder / "images" / "b.jpg").unlink()
        with pytest.raises(FileNotFoundError, match=r"b.jpg', which .*i.json names, which holds 1 images"):
            coco_instance_images(file, folder / "images")
        with pytest.raises(FileNotFoundError, match="no folder"):
            coco_instance_images(file, folder / "elsewhere")
        with pytest.raises(FileNotFoundError, match="no annotation file"):
            coco_instance_images(folder / "gone.json", folder / "images")

    def test_a_truncated_file_is_told(self, folder):
        (folder / "i.json").write_text(json.dumps(instances())[:-20])
        with pytest.raises(ValueError, match="no JSON file, or a damaged one"):
            coco_instance_images(folder / "i.json", folder / "images")


def panoptic(folder, size=(4, 5)):
    """Segment 70,000 = 112 + 256 · 17 + 256² · 1 in the left column, 3 in the next one, and void beside them."""
    colours = np.zeros((*size, 3), dtype=np.uint8)
    colours[:, 0] = (112, 17, 1)
    colours[:, 1] = (3, 0, 0)
    colours[:, 2] = (4, 0, 0)
    (folder / "p").mkdir()
    Image.fromarray(colours).save(folder / "p" / "a.png")
    segments = [{"id": 70_000, "category_id": 7}, {"id": 3, "category_id": 9}]
    segments.append({"id": 4, "category_id": 7, "iscrowd": 1})
    annotations = [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]
    return instances(annotations=annotations)


class TestPanoptic:
    def test_colours_are_segments_and_void_is_ignored(self, folder):
        (one,) = coco_panoptic_images(write(folder / "p.json", panoptic(folder)), folder / "images")
        found = one.objects()
        assert found.names == ("cow", "sky")
        assert found.masks[0][:, 0].all() and found.masks[1][:, 1].all() and found.masks.sum() == 8
        assert found.ignored[:, 2:].all() and found.ignored.sum() == 12

    def test_stuff_may_be_background(self, folder):
        file = write(folder / "p.json", panoptic(folder))
        (one,) = coco_panoptic_images(file, folder / "images", folder / "p", things_only=True)
        assert one.objects().names == ("cow",) and not one.objects().ignored[:, 1].any()

    def test_a_segmentation_of_another_size_is_refused(self, folder):
        (one,) = coco_panoptic_images(write(folder / "p.json", panoptic(folder, (5, 4))), folder / "images")
        with pytest.raises(ValueError, match=r"a.png.*5 × 4 pixels"):
            one.objects()

    def test_a_segment_that_is_not_drawn_is_named(self, folder):
        document = panoptic(folder)
        document["annotations"][0]["segments_info"].append({"id": 5, "category_id": 7})
        (one,) = coco_panoptic_images(write(folder / "p.json", document), folder / "images")
        with pytest.raises(ValueError, match=r"annotation 5 of a.jpg: its mask is empty"):
            one.objects()

    def test_a_missing_png_and_a_file_of_instances_are_told(self, folder):
        file = write(folder / "p.json", panoptic(folder))
        (folder / "p" / "a.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"a.png"):
            coco_panoptic_images(file, folder / "images")
        with pytest.raises(ValueError, match="no panoptic segmentation"):
            coco_panoptic_images(write(folder / "p.json", instances(annotations=[{"image_id": 1}])), folder / "images")


class TestSA1B:
    def write(self, folder, **changes):
        image = {"image_id": 1, "file_name": "a.jpg", "height": 4, "width": 5}
        return write(folder / "images" / "a.json", {"image": image, "annotations": [], **changes})

    def test_compressed_run_lengths_beside_the_image_are_objects_without_names(self, folder):
        mask_tools = pytest.importorskip("pycocotools.mask")
        mask = np.zeros((4, 5), dtype=np.uint8, order="F")
        mask[1:3, 2] = 1
        counts = mask_tools.encode(mask)["counts"].decode()
        self.write(folder, annotations=[{"id": 5, "segmentation": {"size": [4, 5], "counts": counts}}])
        (one,) = sa1b_images(folder / "images")
        assert one.file == folder / "images" / "a.jpg" and one.objects().names == ("",)
        assert np.array_equal(one.objects().masks[0], mask.astype(bool))

    def test_damaged_counts_are_named(self, folder):
        self.write(folder, annotations=[{"id": 5, "segmentation": {"size": [4, 5], "counts": "4"}}])
        with pytest.raises(ValueError, match=r"annotation 5 of a.jpg: The runs of a mask add up to 4 pixels"):
            sa1b_images(folder / "images")[0].objects()

    def test_what_is_missing_is_named(self, folder):
        with pytest.raises(FileNotFoundError, match="no JSON file with masks of SA-1B"):
            sa1b_images(folder / "images")
        self.write(folder, image={"image_id": 1, "file_name": "z.jpg", "height": 4, "width": 5})
        with pytest.raises(FileNotFoundError, match=r"z.jpg"):
            sa1b_images(folder / "images")
        write(folder / "images" / "a.json", instances())
        with pytest.raises(ValueError, match="lacks 'image'"):
            sa1b_images(folder / "images")
