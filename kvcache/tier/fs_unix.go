//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package tier

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Lock takes a lock that ends with the process, however that ends.
func (system) Lock(name string) (unlock func() error, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("it is open elsewhere: %w", err), f.Close())
	}
	return f.Close, nil
}

// SyncDir makes the names in a folder last.
func (system) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
