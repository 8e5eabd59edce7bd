"""Functions that write small data sets in the formats of the real ones and return their content."""

import hashlib
import io
import pickle

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.data.shards import write_store

FILES = (
    "array",
    "celeba64",
    "celebahq256",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "folder",
    "hub",
    "imagenet256",
    "imagenet32",
    "imagenet64",
    "lsun",
    "mnist",
    "store",
)
"""Options of the group `data` that read files"""
WNIDS = ("n01440764", "n01443537")
NAMES = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}


def noise(count, height, width, channels=3, seed=0):
    shape = (count, height, width, channels)[: 3 + (channels > 1)]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def dump(file, content):
    """Pickle `content` and return the MD5 that torchvision verifies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content))
    return hashlib.md5(file.read_bytes()).hexdigest()


def cifar(root, patch, kind=datasets.CIFAR10, each=4, test=3, classes=10):
    """Write `each` images to each training file, and patch torchvision's MD5s."""
    label = "labels" if kind is datasets.CIFAR10 else "fine_labels"
    content = {"train": ([], []), "test": ([], [])}

    def batches(files, split, count):
        for i, (name, _) in enumerate(files):
            pixels = noise(count, 32, 32, seed=10 * len(split) + i).transpose(0, 3, 1, 2)
            labels = [(i + j) % classes for j in range(count)]
            content[split][0].append(pixels), content[split][1].extend(labels)
            batch = {
                "data": pixels.reshape(count, 3072),
                label: labels,
                "filenames": [f"{j}.png" for j in labels],
            }
            yield [name, dump(root / kind.base_folder / name, batch)]

    patch.setattr(kind, "train_list", [*batches(kind.train_list, "train", each)])
    patch.setattr(kind, "test_list", [*batches(kind.test_list, "test", test)])
    names = [f"sea_creature {i}" for i in range(classes)]
    md5 = dump(root / kind.base_folder / kind.meta["filename"], {kind.meta["key"]: names})
    patch.setattr(kind, "meta", kind.meta | {"md5": md5})
    return {
        split: (torch.tensor(np.concatenate(pixels)), torch.tensor(labels))
        for split, (pixels, labels) in content.items()
    }


def idx(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def mnist(root, kind=datasets.MNIST, train=12, test=4):
    content, raw = {}, root / kind.__name__ / "raw"
    for split, name, count in (("train", "train", train), ("test", "t10k", test)):
        pixels, labels = noise(count, 28, 28, 1, seed=count), np.arange(count) % 10
        idx(raw / f"{name}-images-idx3-ubyte", pixels)
        idx(raw / f"{name}-labels-idx1-ubyte", labels)
        content[split] = torch.tensor(pixels)[:, None], torch.tensor(labels)
    return content


def celeba(root, patch, splits="0000001122"):
    """Write images of the split that each digit names: lossless PNGs with the real names."""
    base, names = root / "celeba", [f"{i + 1:06}.jpg" for i in range(len(splits))]
    (base / "img_align_celeba").mkdir(parents=True)
    pixels = noise(len(splits), 218, 178)
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(base / "img_align_celeba" / name, format="PNG")

    def rows(file, value, header=""):
        (base / file).write_text(
            header + "".join(f"{name} {value(i)}\n" for i, name in enumerate(names))
        )

    count = f"{len(names)}\n"
    rows("list_eval_partition.txt", lambda i: splits[i])
    rows("identity_CelebA.txt", lambda i: i)
    rows("list_bbox_celeba.txt", lambda i: "1 2 3 4", f"{count}image_id x_1 y_1 width height\n")
    rows("list_landmarks_align_celeba.txt", lambda i: "1 2", f"{count}lefteye_x lefteye_y\n")
    rows("list_attr_celeba.txt", lambda i: "1 -1", f"{count}Bald Young \n")
    file_list = [
        (key, hashlib.md5((base / name).read_bytes()).hexdigest(), name)
        for key, _, name in datasets.CelebA.file_list
        if name.endswith(".txt")
    ]
    patch.setattr(datasets.CelebA, "file_list", [*file_list, ("", None, "img_align_celeba.zip")])
    return torch.tensor(pixels).permute(0, 3, 1, 2)


def lsun(root, category="church_outdoor", size=(24, 16), train=9, test=4):
    """Write LMDB files of WebP images, as in LSUN, but lossless."""
    import lmdb

    content = {}
    for split, count in (("train", train), ("val", test)):
        pixels = noise(count, size[1], size[0], seed=count)
        with (
            lmdb.open(str(root / f"{category}_{split}_lmdb"), map_size=2**28) as base,
            base.begin(write=True) as txn,
        ):
            for image in pixels:
                key = hashlib.sha1(image.tobytes()).hexdigest().encode()
                txn.put(key, encoded(image, "WEBP", lossless=True))
        order = sorted(range(count), key=lambda i: hashlib.sha1(pixels[i].tobytes()).hexdigest())
        content[split] = torch.tensor(pixels[order]).permute(0, 3, 1, 2)
    return content


def encoded(image, kind="PNG", **kwargs):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format=kind, **kwargs)
    return stream.getvalue()


def imagenet(root, size=(16, 16), train=4, test=2, named=True):
    """Write `train` and `test` images of each of two classes."""
    content = {}
    for split, count in (("train", train), ("val", test)):
        pixels = noise(count * len(WNIDS), size[1], size[0], seed=count)
        for i, image in enumerate(pixels):
            where = root / split / WNIDS[i // count]
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(where / f"{WNIDS[i // count]}_{i}.JPEG", format="PNG")
        content[split] = torch.tensor(pixels).permute(0, 3, 1, 2)
    if named:
        torch.save((NAMES, []), root / "meta.bin")
    return content


def parquet(root, train=12, test=4, size=8, shards=1):
    """Write tables of PNGs and labels, as on the Hub."""
    import datasets as hub

    root.mkdir(parents=True, exist_ok=True)
    features = hub.Features(
        {
            "img": hub.Image(),
            "label": hub.ClassLabel(names=["cat", "dog"]),
            "id": hub.Value("int64"),
        }
    )
    content = {}
    for split, count in (("train", train), ("test", test)):
        pixels = noise(count, size, size, seed=count)
        rows = [
            {"img": {"bytes": encoded(image), "path": None}, "label": i % 2, "id": i}
            for i, image in enumerate(pixels)
        ]
        for shard in range(shards):
            part = rows[shard * count // shards : (shard + 1) * count // shards]
            if part:
                table = hub.Dataset.from_list(part, features=features)
                table.to_parquet(root / f"{split}-{shard:05}-of-{shards:05}.parquet")
        content[split] = torch.tensor(pixels).permute(0, 3, 1, 2)
    return content


def overrides(option, root, patch, side=8):
    """Write a few images of `side` for data=`option`, and return the overrides that name them."""
    overrides = [f"data.path={root}", f"data.resolution={side}"]
    if option.startswith("cifar"):
        cifar(root, patch, getattr(datasets, option.upper()))
    elif option.endswith("mnist"):
        mnist(root, datasets.MNIST if option == "mnist" else datasets.FashionMNIST)
    elif option == "celeba64":
        celeba(root, patch)
    elif option == "lsun":
        lsun(root, size=(side, side))
    elif option.startswith("imagenet"):
        imagenet(root, (side, side))
    elif option == "hub":
        parquet(root, size=side)
        overrides = [f"data.name={root}", f"data.cache={root}/cache"]
    elif option == "array":
        np.save(root / "images.npy", noise(8, side, side))
        overrides = [f"data.path={root}/images.npy"]
    elif option == "store":
        pixels = torch.tensor(noise(8, side, side)).permute(0, 3, 1, 2)
        write_store(
            root / "store", [(pixels, torch.zeros(8))], [], ImageTransform(side, 3), "noise"
        )
        overrides = [f"data.path={root}/store"]
    else:
        (root / "images").mkdir()
        for i, image in enumerate(noise(8, side, side)):
            Image.fromarray(image).save(root / "images" / f"{i}.png")
        overrides[0] += "/images"
    return overrides
