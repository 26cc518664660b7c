"""How face_mter judges."""
