"""What attention_defense works on."""
