"""ADE20K with the 150 classes of the scene parsing challenge of 2016 (Zhou et al., 2017)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import ClassVar

from meanshifter.data.catalog.public import About, PublicDataset, SubmissionFormat
from meanshifter.data.download import Archive
from meanshifter.data.labels import LabelSpace, hex_colors
from meanshifter.data.layout import Listing, find_files, list_folders
from meanshifter.utils.files import read_text

# the first of the synonyms in the challenge's objectInfo150
NAMES = """
wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person;
earth; door; table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf; house; sea;
mirror; rug; field; armchair; seat; fence; desk; rock; wardrobe; lamp; bathtub; railing; cushion; base;
box; column; signboard; chest of drawers; counter; sand; sink; skyscraper; fireplace; refrigerator;
grandstand; path; stairs; runway; case; pool table; pillow; screen door; stairway; river; bridge;
bookcase; blind; coffee table; toilet; flower; book; hill; bench; countertop; stove; palm; kitchen
island; computer; swivel chair; boat; bar; arcade machine; hovel; bus; towel; light; truck; tower;
chandelier; awning; streetlight; booth; television; airplane; dirt track; apparel; pole; land;
bannister; escalator; ottoman; bottle; buffet; poster; stage; van; ship; fountain; conveyer belt;
canopy; washer; plaything; swimming pool; stool; barrel; basket; waterfall; tent; bag; minibike; cradle;
oven; ball; food; step; tank; trade name; microwave; pot; animal; bicycle; lake; dishwasher; screen;
blanket; sculpture; hood; sconce; vase; traffic light; tray; ashcan; fan; pier; crt screen; plate;
monitor; bulletin board; shower; radiator; glass; clock; flag
"""
PALETTE = hex_colors("""
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
""")
LABELS = LabelSpace(
    tuple(" ".join(name.split()) for name in NAMES.split(";")),
    PALETTE,
    raw={0: 255, **{k: k - 1 for k in range(1, 151)}},
)


class ADE20K(PublicDataset):
    """`images/{training,validation}/*.jpg` and `annotations/{training,validation}/*.png`.

    Raw 0 ("other") is ignored, and raw k is train id k-1. The split "test" has no labels: it is the images
    `release_test/testing/*.jpg` that `release_test/list.txt` names. Arguments and errors are those of PublicDataset.
    """

    space = LABELS
    splits: ClassVar = {"train": "images/training", "val": "images/validation", "test": "testing"}
    inside = ("ADEChallengeData2016", "release_test", "ADEChallengeData2016/release_test", "images")
    withheld = frozenset({"test"})
    about = About(
        name="ade20k",
        title="ADE20K, scene parsing challenge 2016",
        classes=LABELS.num_classes,
        images={"train": 20210, "val": 2000, "test": 3352},
        terms="images for non-commercial research and education; annotations BSD-3-Clause",
        home="http://sceneparsing.csail.mit.edu/",
        archive=Archive(
            url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            filename="ADEChallengeData2016.zip",
            digest="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            published_by="the Segmenter repository",
            folder="ADEChallengeData2016",
        ),
        archives={
            "test": Archive(
                url="http://data.csail.mit.edu/places/ADEchallenge/release_test.zip",
                filename="release_test.zip",
                digest="sha1:e05747892219d10e9243933371a497e905a4860c",
                published_by="the Segmenter repository",
                folder="release_test",
            )
        },
        submission=SubmissionFormat(),  # see release_test/readme.txt: values 1 to 150, NAME.png of the image's size
    )

    @classmethod
    def find(cls, folder: Path, split: str) -> Listing:
        """Images and masks of the same names; for the test split, the images in `list.txt`, or all without a list."""
        if split != "test":
            images = folder / cls.splits[split]
            return list_folders(images, folder / "annotations" / images.name)
        found, twice, passed = find_files(folder / "testing", (".jpg",), "images")
        path = folder / "list.txt"
        if not path.is_file():
            return Listing(folder / "testing", found, {}, tuple(twice), passed=passed)
        named = {PurePosixPath(name).stem: name for name in read_text(path).split()}
        lost = tuple(name for stem, name in named.items() if stem not in found)
        if others := len(found.keys() - named.keys()):
            passed["images that list.txt does not name"] += others
        listed = {stem: found[stem] for stem in named if stem in found}
        return Listing(path, listed, {}, tuple(double for double in twice if double[0] in named), lost, passed)
