"""Networks of face_mter."""
