"""Data sets: one file each. To add one, write `<name>.py` here and give it a key under `datasets` in params.yaml.

A file defines

    LICENCE, SOURCE, ACCESS   what its owner allows, where it comes from, how a user gets it (shown when files lack)
    ARCHIVES                  name patterns of the archives that hold images, e.g. ``("images_*.tar.gz",)``
    TABLES                    file name -> {column: "text" or "number"}: the tables and columns that it needs;
                              ``"a|b"`` is a column that owners name a or b (handed over as a); a .txt has no header
    TERMS                     finding (of findings.csv) -> the source's terms that mean it; what is not a key is
                              never annotated
    RULES                     source term -> the rule for a term that is no finding ("No Finding", "unchanged", ...)
    AGES                      (lowest, highest) possible age in years; others are nulled and counted
    image_key(name)           the image's key in the labels, from a file's or member's path; None if it is no image
    harmonize(tables)         -> (rows, terms, notes), see below

and may define

    OPTIONAL_TABLES           as TABLES: read where they are there
    OLDER_NAMES               table -> other file names of it, tried in their order where it is not there
    INDEX                     "" if the first column of the owner's own table has no name; otherwise it is said that
                              one without a name was ignored
    UNSAID                    table -> those of ("age", "sex") that it never says; otherwise a table for which all of
                              them come out null stops the stage
    boxes(tables)             -> image, finding, x, y, width, height as fractions of the image side
    bit_depths(tables)        -> {image: stored bits} for 16-bit images
    sizes(tables)             -> {image: (width, height)} where a table says it
    MEANS                     name -> findings of TERMS: the means that its own benchmark averages, reported per image
                              and, as `<name>_per_study`, per study; the first by name is the one that is quoted
    FILES                     what its owner ships, for `make fetch`: file name -> the fields that are known of
                              `bytes` (exact), `about_bytes` (where that is not known), `checksum` ("md5:..." or
                              "sha256:..."), `url` (none: the owner hands it out after registration), and `alone`
                              (True: this file by itself is the whole data set, a smaller release)

`image_key` need know the owner's names only: a film may also be stored as PNG, JPEG or DICOM, with the suffix in any
case, and then has the key of `<name>.png` or `<name>.jpg`.

`tables` is {file name: DataFrame} of the columns in TABLES, indexed by row number, text never null (a blank is "") and
without white space at its ends; rows without any value are left out.
`harmonize` returns every row of the source, none left out, as a DataFrame indexed by row number:

    image, patient, study     keys, text, as the owner writes them: one that a program took for a number
                              (8.39860E+35, 1.0) is refused with its row
    file                      where the row stands, `attrs["file"]` of its table: for messages
    view                      PA, AP, AP_horizontal, lateral, frontal (PA or AP, not said which), or the source's own
                              word (params choose the views)
    sex                       M, F, or anything else (nulled and counted; Male, Female and small letters will do)
    age                       years, a number or NaN
    label_source              report (mined), model, or physician
    official                  train_val, test, later_test (a second test set, for `split: later_test`), or "" where the
                              owner has no split or the row is in no part
    dropped                   "" or the reason for which the row cannot be used
    <finding>                 int8 facts of core/findings.py, for each key of TERMS

with `terms`, a count for each source term met, and `notes`, counts of anything else worth saying. It raises ValueError
naming file, row and the allowed terms on a term that it does not know.
"""
