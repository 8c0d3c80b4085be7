"""Maps of words and phrases over image patches, alignments of one image and caption, and figures of them."""
