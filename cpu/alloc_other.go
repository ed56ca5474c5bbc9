//go:build !linux

package cpu

// granted cannot ask the system here: a size it refuses ends the program.
func granted(int64) bool { return true }

// wantHugePages has no wish to make here.
func wantHugePages([]byte) {}
