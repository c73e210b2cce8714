"""What is declared about the pictures, volumes, points or meshes of a source."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["Declared", "ImageSpec"]


class Declared(BaseModel):
    """Base: frozen, and an unknown key is an error."""

    # An input may hold a password: it is never repeated in an error.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ImageSpec(Declared):
    """``images = {folder = "png", column = "file", mode = "gray", size = [64, 64]}``: the pictures of a table's rows.

    Attributes
    ----------
    folder : str
        Folder of the files, relative to the study file.
    column : str
        Column of the table that names each row's file.
    array : str
        Instead of folder and column: the array of a ``.npz`` file, shape (n, height, width), (n, height, width, 3) for
        "rgb", (n, depth, height, width) for volumes or (n, points, coordinates).
    mode : "gray", "rgb", "points" or "mesh"
        One or three channels; points in space, such as the vertices of surfaces that follow one template; or meshes
        with edges of their own, a ``.npz`` file each.
    size : (width, height) in pixels, (width, height, depth) for volumes, or (coordinates, points)
        Every picture of a folder is resized to it; arrays must have it. For meshes (coordinates, most vertices, most
        edges): smaller ones are padded, larger ones refused.
    bounds : (low, high)
        For meshes, and for arrays without a scale of their own (decimals, signed numbers): scaled to -1 and 1. Whole
        numbers without sign are scaled by their type, so that no picture's own range counts.
    """

    folder: str | None = None
    column: str | None = None
    array: str | None = None
    mode: Literal["gray", "rgb", "points", "mesh"] = "gray"
    size: tuple[int, int] | tuple[int, int, int] = Field(description="width, height (and depth) in pixels")
    bounds: tuple[float, float] | None = None

    @field_validator("size")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError("size is width and height (and depth) in pixels, each at least 1")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> ImageSpec:
        if (self.array is None) == (self.folder is None) or (self.folder is None) != (self.column is None):
            raise ValueError("images are in a folder (folder and column) or in an array of a .npz file (array)")
        if self.mode == "mesh":
            return self._mesh()
        if self.array is None and (len(self.size) == 3 or self.bounds is not None):
            raise ValueError("volumes and bounds belong to arrays; pictures of a folder have two sizes")
        if self.mode == "rgb" and len(self.size) == 3:
            raise ValueError("a volume has one channel: mode is gray")
        if self.mode == "points" and (self.array is None or len(self.size) == 3):
            raise ValueError("points are an array of a .npz file, with size = [coordinates, points], such as [3, 1000]")
        return self._bounded()

    def _mesh(self) -> ImageSpec:
        if self.folder is None or len(self.size) != 3 or self.bounds is None:
            raise ValueError(
                "meshes are files of a folder, with size = [coordinates, most vertices, most edges], such as "
                "[3, 1000, 3000], and bounds = [low, high] of their coordinates"
            )
        return self._bounded()

    def _bounded(self) -> ImageSpec:
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError("bounds must be [low, high] with low below high")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one entry for a model: (channels, height, width), (channels, depth, height, width), or points.

        A mesh is (vertices + edges, coordinates + 1): see `confide.data.meshes`.
        """
        if self.mode == "mesh":
            return sum(self.size[1:]), max(self.size[0], 2) + 1
        if self.mode == "points":
            return tuple(reversed(self.size))
        return (1 if self.mode == "gray" else 3, *reversed(self.size))
