package tier

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/longctx/longctx/kvcache/page"
)

var errInjected = errors.New("injected fault")

// faulty is the system's file system until call number fail, which gives err.
type faulty struct {
	system
	calls atomic.Int64
	fail  int64 // 0: never
	err   error
	what  atomic.Pointer[string] // the call that failed
}

func (f *faulty) due(what string) error {
	if f.calls.Add(1) != f.fail {
		return nil
	}
	f.what.Store(&what)
	return f.err
}

func (f *faulty) ReadDir(dir string) ([]fs.DirEntry, error) {
	if err := f.due("ReadDir"); err != nil {
		return nil, err
	}
	return f.system.ReadDir(dir)
}

func (f *faulty) Create(name string) (file, error) {
	if err := f.due("Create"); err != nil {
		return nil, err
	}
	x, err := f.system.Create(name)
	return &faultyFile{x, f}, err
}

func (f *faulty) Open(name string) (file, error) {
	if err := f.due("Open"); err != nil {
		return nil, err
	}
	x, err := f.system.Open(name)
	return &faultyFile{x, f}, err
}

func (f *faulty) Rename(from, to string) error {
	if err := f.due("Rename"); err != nil {
		return err
	}
	return f.system.Rename(from, to)
}

func (f *faulty) Remove(name string) error {
	if err := f.due("Remove"); err != nil {
		return err
	}
	return f.system.Remove(name)
}

func (f *faulty) SyncDir(dir string) error {
	if err := f.due("SyncDir"); err != nil {
		return err
	}
	return f.system.SyncDir(dir)
}

type faultyFile struct {
	file
	fs *faulty
}

// Write fails after half of what it was given.
func (f *faultyFile) Write(b []byte) (int, error) {
	if err := f.fs.due("Write"); err != nil {
		n, _ := f.file.Write(b[:len(b)/2])
		if errors.Is(err, errShort) {
			return n, nil
		}
		return n, err
	}
	return f.file.Write(b)
}

func (f *faultyFile) Read(b []byte) (int, error) {
	if err := f.fs.due("Read"); err != nil {
		return 0, err
	}
	return f.file.Read(b)
}

func (f *faultyFile) Sync() error {
	if err := f.fs.due("Sync"); err != nil {
		return err
	}
	return f.file.Sync()
}

func (f *faultyFile) Close() error {
	err := f.file.Close()
	return errors.Join(err, f.fs.due("Close"))
}

var errShort = errors.New("short write without an error")

// TestDiskFaults: whatever call of the file system fails, and however, the error
// has its type, pages that were kept are kept, and none is wrong, there and after
// opening again.
func TestDiskFaults(t *testing.T) {
	ctx := context.Background()
	met := map[string]bool{}
	for _, fault := range []error{errInjected, syscall.ENOSPC, errShort} {
		for fail := int64(1); ; fail++ {
			dir, f := t.TempDir(), &faulty{fail: fail, err: fault}
			kept := map[page.Key]bool{}
			o := DiskOptions{Limits: Limits{Bytes: 900, Order: FIFO}, fs: f}
			failed := 0
			note := func(what string, err error) {
				var full *FullError
				var store *StoreError
				switch {
				case err == nil:
					return
				case errors.Is(fault, syscall.ENOSPC):
					if !errors.As(err, &full) && !strings.Contains(err.Error(), "opening") {
						t.Fatalf("fault %d: %s: %v is no FullError", fail, what, err)
					}
				case !errors.As(err, &store) && !strings.Contains(err.Error(), "opening"):
					t.Fatalf("fault %d: %s: %v is no StoreError", fail, what, err)
				}
				failed++
			}
			d, err := OpenDisk(dir, o)
			if note("Open", err); err != nil {
				if d, err = OpenDisk(dir, o); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 4 { // two pages fit
				err := d.Put(ctx, key(i), blob(key(i), 2))
				note("Put", err)
				kept[key(i)] = err == nil
			}
			if b, err := d.Get(ctx, key(3), nil); err == nil && !bytes.Equal(b, blob(key(3), 2)) {
				t.Fatalf("fault %d: wrong page", fail)
			} else if kept[key(3)] {
				note("Get", err)
			}
			u := d.Usage()
			if u.Bytes > 900 || u.Bytes != int64(u.Pages)*453 || d.index.held != 0 {
				t.Fatalf("fault %d: %+v, %d bytes held", fail, u, d.index.held)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			what := ""
			if p := f.what.Load(); p != nil {
				what = *p
				met[what] = true
			}
			checkReopened(t, dir, fail, kept, u)
			if f.calls.Load() < fail {
				if failed > 0 {
					t.Fatal("an error without a fault")
				}
				break
			}
			if failed == 0 && what != "Remove" && what != "Close" {
				t.Errorf("fault %d of %s was not reported", fail, what)
			}
		}
	}
	for _, what := range []string{"ReadDir", "Create", "Open", "Rename", "Remove", "SyncDir", "Write", "Read", "Sync", "Close"} {
		if !met[what] {
			t.Errorf("%s never failed", what)
		}
	}
}

// checkReopened: the pages said to be kept are there, up to the two that fit,
// and no file is left over.
func checkReopened(t *testing.T, dir string, fail int64, kept map[page.Key]bool, before Usage) {
	t.Helper()
	ctx := context.Background()
	d, err := OpenDisk(dir, DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := 0
	for i := range 4 {
		b, err := d.Get(ctx, key(i), nil)
		switch {
		case err == nil && !bytes.Equal(b, blob(key(i), 2)):
			t.Fatalf("fault %d: wrong page %d after opening again", fail, i)
		case err == nil:
			got++
		case !errors.Is(err, ErrNotFound):
			t.Fatalf("fault %d: page %d after opening again: %v", fail, i, err)
		case kept[key(3)] && i == 3:
			t.Fatalf("fault %d: the last page kept is not there", fail)
		}
	}
	if got < before.Pages {
		t.Fatalf("fault %d: %d pages after opening again, %d before", fail, got, before.Pages)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(list); n != got+1 { // and the lock
		t.Fatalf("fault %d: %d files for %d pages", fail, n, got)
	}
}

// TestReopen: pages are there again, in the order of their files; what is no page
// is removed, what is of another version or not the store's is left alone.
func TestReopen(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	d, err := OpenDisk(dir, DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		if err := d.Put(ctx, key(i), blob(key(i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenDisk(dir, DiskOptions{}); err == nil {
		t.Error("a folder was opened twice")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return filepath.Join(dir, key(i).Name()+pageSuffix) }
	edit := func(i int, f func(b []byte) []byte) {
		b, err := os.ReadFile(name(i))
		if err == nil {
			err = os.WriteFile(name(i), f(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	edit(0, func(b []byte) []byte { return b[:len(b)-1] })
	edit(1, func(b []byte) []byte { b[70] ^= 1; return b })
	edit(2, func(b []byte) []byte { b[8] = 9; return b })
	edit(3, func(b []byte) []byte { return blob(key(4), 1) }) // another page under its name
	edit(5, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	for _, f := range []string{"writing-7", "notes.txt", "x.page"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if d, err = OpenDisk(dir, DiskOptions{}); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if u := d.Usage(); u.Recovered != 2 || u.Pages != 2 || u.Corrupt != 3 || u.OtherVersions != 1 {
		t.Errorf("%+v", u)
	}
	for i := range 6 {
		b, err := d.Get(ctx, key(i), nil)
		var corrupt *CorruptError
		switch {
		case i == 4 && (err != nil || !bytes.Equal(b, blob(key(4), 1))),
			i == 5 && !errors.As(err, &corrupt),
			i < 4 && !errors.Is(err, ErrNotFound):
			t.Errorf("page %d: %v", i, err)
		}
	}
	var names []string
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		names = append(names, e.Name())
	}
	want := []string{"lock", "notes.txt", "x.page", key(2).Name() + pageSuffix, key(4).Name() + pageSuffix}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	// a page of this version takes the place of one of another
	if err := d.Put(ctx, key(2), blob(key(2), 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(ctx, key(2), nil); err != nil {
		t.Error(err)
	}
}

// TestReopenSmaller: a folder with more than the limit is made to fit, the
// oldest files first.
func TestReopenSmaller(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	d, err := OpenDisk(dir, DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := d.Put(ctx, key(i), blob(key(i), 1)); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000-i), 0)
		if err := os.Chtimes(filepath.Join(dir, key(i).Name()+pageSuffix), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenDisk(dir, DiskOptions{Limits: Limits{Bytes: 800}}); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range 5 {
		if ok, err := d.Has(ctx, key(i)); err != nil || ok != (i == 1 || i == 0) {
			t.Errorf("page %d is there: %v, %v", i, ok, err)
		}
	}
}

// TestDiskDamageAnywhere: a byte changed anywhere in a file is found.
func TestDiskDamageAnywhere(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	d, err := OpenDisk(dir, DiskOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	k := key(1)
	b := blob(k, 2)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range b {
		if err := d.Put(ctx, k, b); err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(b)
		bad[i] ^= byte(1 + rng.IntN(255))
		if err := os.WriteFile(d.pathOf(k), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		var corrupt *CorruptError
		if _, err := d.Get(ctx, k, nil); !errors.As(err, &corrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if ok, _ := d.Has(ctx, k); ok {
			t.Fatalf("byte %d: the page is still there", i)
		}
	}
}
