"""What face_mter works on."""
