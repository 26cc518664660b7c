"""Training of face_mter."""
