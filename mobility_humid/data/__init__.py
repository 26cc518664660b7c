"""What mobility_humid works on."""
