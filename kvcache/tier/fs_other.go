//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package tier

// Lock does nothing where there is no flock.
func (system) Lock(string) (unlock func() error, err error) {
	return func() error { return nil }, nil
}

// SyncDir does nothing where folders cannot be synced.
func (system) SyncDir(string) error { return nil }

func noSpace(error) bool { return false }
