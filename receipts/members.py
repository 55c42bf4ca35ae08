"""What the members of our documents may hold: texts, counts and figures, each with its range."""

from functools import partial
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_serializer,
)

MAX_INTEGER: Final = 2**63 - 1
# Under 2^33 J, doubles lie closer together than one microjoule: each whole number of microjoules has a double of
# its own. 2^33 J are 2.4 MWh; no request comes near.
_MAX_JOULES: Final = 2**33
_NO_CONTROLS: Final = r"^[^\x00-\x1f\x7f]+$"
_METHODS: Final = "nvml-total-energy|nvml-power-integrated|rapl|ioreport|util-tdp|replay"

Text = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_NO_CONTROLS)]
ReceiptId = Annotated[str, StringConstraints(pattern=r"^rcpt_[0-9a-f]{32}$")]
AccountName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$")]
CustomerTag = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_NO_CONTROLS)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
CountryCode = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
ApiKeyId = Annotated[str, StringConstraints(pattern=r"^key_[0-9a-f]{16}$")]
WorkloadName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$")]
TierName = Annotated[str, StringConstraints(pattern=r"^L[0-3]$")]
EnergyMethod = Annotated[str, StringConstraints(pattern=rf"^({_METHODS})(\+({_METHODS}))*$")]
Confidence = Literal["measured-direct", "measured-apportioned", "estimated", "derived", "unavailable"]

Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Seq = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Joules = Annotated[float, Field(ge=0, lt=_MAX_JOULES)]
Figure = Annotated[float, Field(ge=0, lt=1e15)]
Share = Annotated[float, Field(ge=0, le=1)]
Pue = Annotated[float, Field(ge=1, le=100)]
# JSON has arrays, a frozen model has tuples: the one conversion that is let through.
json_array: Final = partial(Field, strict=False)


class StrictModel(BaseModel):
    """A value as JSON has it: no member more, none less, no conversion, never changed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class MayLackMembers(StrictModel):
    """A value whose members of these names are there or absent, never null: what is older than they are has none."""

    MAY_LACK: ClassVar[tuple[str, ...]] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _never_null(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.field_name in cls.MAY_LACK:
            raise ValueError("absent where there is none, never null")
        return value

    @model_serializer(mode="wrap")
    def _absent_where_there_is_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        members: dict[str, Any] = serialize(self)
        for name in self.MAY_LACK:
            if members[name] is None:
                del members[name]
        return members
