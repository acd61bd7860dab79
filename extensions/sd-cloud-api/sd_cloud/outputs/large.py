"""The smaller JPEG that the webui puts beside a large picture (its option ``export_for_4chan``)."""

from __future__ import annotations

from PIL import Image

from sd_cloud.job import Job

MIB = 1024 * 1024


def jpeg_copy(job: Job, image: Image.Image, file_bytes: int) -> Image.Image | None:
    """The picture for the copy; None when the options ask for none, or the picture is small.

    Large is a side above ``target_side_length`` pixels, to which the copy is scaled down, or a file
    above ``img_downscale_threshold`` MiB.
    """
    if not job.option("export_for_4chan", True):
        return None
    side = int(job.option("target_side_length", 4000) or 4000)
    longest = max(image.size)
    if longest > side:
        width, height = (max(1, round(length * side / longest)) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    limit_bytes = float(job.option("img_downscale_threshold", 4.0) or 4.0) * MIB
    return image if file_bytes > limit_bytes else None
