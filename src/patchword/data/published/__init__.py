"""Published data sets of images and captions, read from the files that their archives contain; one file per layout.

Each layout has two functions. `files(root, split)` checks that the split's files exist and returns them. `rows(root,
split)` yields one row per image: `image` (its path in `root`), `file` (its name), `caption` (all its captions), and, if
the image is annotated, `phrases` (see `tables.regions`) and `size` (the width and height that the boxes refer to).
"""

from patchword.data.published import coco, flickr8k, flickr30k

LAYOUTS = {"flickr8k": flickr8k, "flickr30k": flickr30k, "coco": coco}
