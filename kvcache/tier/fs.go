package tier

import (
	"io"
	"io/fs"
	"os"
)

// fileSystem is what Disk needs of one; tests make it fail.
type fileSystem interface {
	MkdirAll(dir string) error
	ReadDir(dir string) ([]fs.DirEntry, error)
	Create(name string) (file, error) // for writing, empty
	Open(name string) (file, error)   // for reading
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
	Lock(name string) (unlock func() error, err error)
}

type file interface {
	io.Reader
	io.Writer
	io.Closer
	Sync() error
	Stat() (fs.FileInfo, error)
}

// system is the system's.
type system struct{}

func (system) MkdirAll(dir string) error                 { return os.MkdirAll(dir, 0o700) }
func (system) ReadDir(dir string) ([]fs.DirEntry, error) { return os.ReadDir(dir) }
func (system) Rename(from, to string) error              { return os.Rename(from, to) }
func (system) Remove(name string) error                  { return os.Remove(name) }

func (system) Create(name string) (file, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (system) Open(name string) (file, error) { return os.Open(name) }
