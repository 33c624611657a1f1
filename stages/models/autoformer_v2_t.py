"""AutoFormerV2-T (Chen et al., arXiv 2111.14725), a teacher of the paper; timm calls it Swin-S3."""

ID = "swin_s3_tiny_224"
