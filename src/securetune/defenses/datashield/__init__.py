"""DataShield (arXiv 2606.00160): the rows that push the model most towards compliance are dropped."""

from securetune.defenses.datashield.filtering import DataShield, DataShieldOptions

__all__ = ["DataShield", "DataShieldOptions"]
