"""Face MTER: margin-based triplet embedding regularisation against feature attacks on face verification (ICCV 2019)."""
