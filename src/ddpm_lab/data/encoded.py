"""Pictures that are a value of a database or a table, not a file."""

from io import BytesIO

from PIL import Image, ImageOps

from ddpm_lab.data.decoding import FORMATS, PIXELS


def decoded(held: bytes, name: str) -> Image.Image:
    """The picture that `held` encodes, turned as its EXIF tag says. Raises ValueError that begins with `name` unless it
    is whole and has at most `PIXELS`.
    """
    try:
        picture = Image.open(BytesIO(held), formats=FORMATS)
        if picture.width * picture.height > PIXELS:
            raise ValueError(f"{picture.width}x{picture.height} are over {PIXELS} pixels")
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception as error:  # broken bytes make PIL raise nearly anything
        raise ValueError(f"{name} cannot be read as a picture ({' '.join(str(error).split())})") from error
    return picture
