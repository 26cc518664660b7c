"""ST-iFGSM: identify drivers by their trips, fool the identifier, harden it (KDD 2020 and KDD 2023)."""
