package tier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/longctx/longctx/kvcache/page"
)

// DiskOptions are those of OpenDisk.
type DiskOptions struct {
	Limits // Bytes 0: as much as the disk has

	// NoSync leaves it to the system when pages reach the disk. They survive the
	// end of the process, killed or not, but maybe not that of the machine; a page
	// that is not whole then is found by its checksum.
	NoSync bool

	fs fileSystem // nil: the system's
}

// Disk keeps pages in files of a folder, one a page, named by Key.Name.
//
// A page is written to a file of another name, which is synced and then renamed,
// and the folder is synced: at any moment a file with the name of a page is a
// whole page. Put returns after that. OpenDisk removes what a killed process
// left half done and reads the headers of the files; a payload is checked when
// it is read.
type Disk struct {
	dir    string
	noSync bool
	fs     fileSystem
	unlock func() error

	mu     sync.Mutex
	index  index
	files  uint64 // names given to files that are being written
	start  Usage  // what was found
	closed bool

	writers sync.WaitGroup // Puts under way
}

var _ Bounded = (*Disk)(nil)

const (
	pageSuffix = ".page"
	workPrefix = "writing-"
)

// chunk is the bytes between two looks at the context; tests make it small.
var chunk = 1 << 20

// OpenDisk opens the folder dir, which is made if it is not there. One process
// at a time has it, where the system knows flock. After opening, pages are in the
// order in which their files were written.
func OpenDisk(dir string, o DiskOptions) (_ *Disk, err error) {
	if err := o.check("Disk", 0); err != nil {
		return nil, err
	}
	d := &Disk{dir: dir, noSync: o.NoSync, fs: o.fs, index: newIndex(o.Limits)}
	if d.fs == nil {
		d.fs = system{}
	}
	fail := func(err error) (*Disk, error) {
		return nil, fmt.Errorf("tier: disk: opening %s: %w", dir, err)
	}
	if err := d.fs.MkdirAll(dir); err != nil {
		return fail(err)
	}
	if !d.noSync { // the name of the folder must last as its pages do
		if err := d.fs.SyncDir(filepath.Dir(filepath.Clean(dir))); err != nil {
			return fail(err)
		}
	}
	if d.unlock, err = d.fs.Lock(filepath.Join(dir, "lock")); err != nil {
		return fail(err)
	}
	if err := d.recover(); err != nil {
		return fail(errors.Join(err, d.unlock()))
	}
	return d, nil
}

// recover lists the pages of the folder.
func (d *Disk) recover() error {
	list, err := d.fs.ReadDir(d.dir)
	if err != nil {
		return err
	}
	type found struct {
		entry *entry
		time  int64
	}
	var pages []found
	for _, f := range list {
		name := f.Name()
		switch base, isPage := strings.CutSuffix(name, pageSuffix); {
		case strings.HasPrefix(name, workPrefix):
			err = d.fs.Remove(d.path(name))
		case isPage && len(base) == 64:
			var e *entry
			var time int64
			if e, time, err = d.examine(base); e != nil {
				pages = append(pages, found{e, time})
			}
		}
		if err != nil {
			return err
		}
	}
	slices.SortStableFunc(pages, func(a, b found) int { return cmp.Compare(a.time, b.time) })
	for _, p := range pages {
		d.index.add(p.entry)
	}
	d.start.Recovered, d.start.RecoveredBytes = len(pages), d.index.bytes
	return d.makeRoom(0)
}

// examine reads the header of a file. What is no page of that name is removed.
func (d *Disk) examine(base string) (e *entry, time int64, err error) {
	f, err := d.fs.Open(d.path(base + pageSuffix))
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	b := make([]byte, page.HeaderBytes+page.MaxNamespace)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, 0, err
	}
	h, bytes, err := page.ParseHeader(b[:n])
	var version *page.VersionError
	if errors.As(err, &version) || err == nil && int64(int(bytes)) != bytes { // or of a machine with larger integers
		d.start.OtherVersions++
		return nil, 0, nil
	}
	if err != nil || bytes != info.Size() || h.Key.Name() != base {
		d.index.corrupt++
		return nil, 0, d.fs.Remove(d.path(base + pageSuffix))
	}
	return &entry{key: h.Key, bytes: bytes}, info.ModTime().UnixNano(), nil
}

func (d *Disk) path(name string) string  { return filepath.Join(d.dir, name) }
func (d *Disk) pathOf(k page.Key) string { return d.path(k.Name() + pageSuffix) }
func (d *Disk) sync(file interface{ Sync() error }) error {
	if d.noSync {
		return nil
	}
	return file.Sync()
}

func (d *Disk) syncDir() error {
	if d.noSync {
		return nil
	}
	return d.fs.SyncDir(d.dir)
}

// makeRoom removes files until n more bytes fit. The caller has the lock.
func (d *Disk) makeRoom(n int64) error {
	x := &d.index
	for victim, ok := x.room(n); !ok; victim, ok = x.room(n) {
		if victim == nil {
			return &FullError{Store: "disk", Need: n, Limit: x.limits.Bytes}
		}
		if err := d.removeFile(victim.key); err != nil {
			return err
		}
		x.remove(victim)
		x.evicted++
	}
	return nil
}

func (d *Disk) removeFile(k page.Key) error {
	err := d.fs.Remove(d.pathOf(k))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func storeError(op string, k page.Key, need int64, err error) error {
	var full *FullError
	if errors.As(err, &full) || errors.Is(err, ErrClosed) {
		return err
	}
	if noSpace(err) {
		return &FullError{Store: "disk", Need: need, Err: err}
	}
	return &StoreError{"disk", op, k, err}
}

// Put is Store.Put. When it returns nil, the page is on the disk, unless NoSync
// was asked for.
func (d *Disk) Put(ctx context.Context, k page.Key, b []byte) error {
	if err := page.Check(b, k); err != nil {
		return err
	}
	n := int64(len(b))
	work, there, err := d.begin(k, n)
	if err == nil && !there {
		if err = d.write(ctx, work, b); err == nil {
			err = d.commit(k, n, work)
		}
		if err != nil {
			// what was written is worth nothing; if it cannot be removed now, it is at the next opening
			_ = d.fs.Remove(work)
		}
		d.end(n)
	}
	if err != nil {
		return storeError("Put", k, n, err)
	}
	return nil
}

// begin makes room for a page and names the file to write it to.
func (d *Disk) begin(k page.Key, n int64) (work string, there bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return "", false, ErrClosed
	}
	if e := d.index.entries[k]; e != nil {
		d.index.use(e)
		return "", true, nil
	}
	if limit := d.index.limits.Bytes; limit > 0 && n > limit {
		return "", false, &FullError{Store: "disk", Need: n, Limit: limit}
	}
	if err := d.makeRoom(n); err != nil {
		return "", false, err
	}
	d.index.held += n
	d.files++
	d.writers.Add(1)
	return d.path(fmt.Sprint(workPrefix, d.files)), false, nil
}

func (d *Disk) write(ctx context.Context, name string, b []byte) (err error) {
	f, err := d.fs.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for len(b) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Write(b[:min(len(b), chunk)])
		if err == nil && n < min(len(b), chunk) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return d.sync(f)
}

// commit gives a written file the name of its page.
func (d *Disk) commit(k page.Key, n int64, work string) error {
	if err := d.fs.Rename(work, d.pathOf(k)); err != nil {
		return err
	}
	err := d.syncDir()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.index.add(&entry{key: k, bytes: n})
	} else if d.index.entries[k] == nil {
		// whether the name lasts is not known, so the page must not count as kept
		err = errors.Join(err, d.removeFile(k))
	}
	return err
}

func (d *Disk) end(n int64) {
	d.mu.Lock()
	d.index.held -= n
	d.mu.Unlock()
	d.writers.Done()
}

// Get is Store.Get.
func (d *Disk) Get(ctx context.Context, k page.Key, dst []byte) ([]byte, error) {
	e, err := d.use(k)
	if err != nil {
		return dst, err
	}
	at := len(dst)
	b, err := d.read(ctx, k, e.bytes, dst)
	if errors.Is(err, fs.ErrNotExist) { // it had to go while we came
		d.lost(k, e, false)
		return dst[:at], ErrNotFound
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return dst[:at], storeError("Get", k, 0, err)
	}
	if err == nil {
		err = page.Check(b[at:], k)
	}
	if err != nil {
		d.lost(k, e, true)
		return dst[:at], &CorruptError{"disk", k, err}
	}
	return b, nil
}

func (d *Disk) use(k page.Key) (*entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	e := d.index.entries[k]
	if e == nil {
		return nil, ErrNotFound
	}
	d.index.use(e)
	return e, nil
}

// read appends the n bytes that a file must have. A shorter one is an
// io.ErrUnexpectedEOF.
func (d *Disk) read(ctx context.Context, k page.Key, n int64, dst []byte) ([]byte, error) {
	f, err := d.fs.Open(d.pathOf(k))
	if err != nil {
		return dst, err
	}
	defer f.Close()
	at := len(dst)
	dst = slices.Grow(dst, int(n))[:at+int(n)]
	for at < len(dst) {
		if err := ctx.Err(); err != nil {
			return dst, err
		}
		m, err := io.ReadFull(f, dst[at:min(len(dst), at+chunk)])
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return dst, err
		}
		at += m
	}
	return dst, nil
}

// lost forgets a page whose file is gone or damaged.
func (d *Disk) lost(k page.Key, e *entry, corrupt bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if corrupt {
		d.index.corrupt++
	}
	if d.index.entries[k] != e { // another was put meanwhile
		return
	}
	d.index.remove(e)
	if corrupt {
		_ = d.removeFile(k) // if it stays, the next opening finds it, and Get finds it damaged again
	}
}

// Has is Store.Has. It does not count as a use.
func (d *Disk) Has(ctx context.Context, k page.Key) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, &StoreError{"disk", "Has", k, err}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false, ErrClosed
	}
	return d.index.entries[k] != nil, nil
}

// Delete is Store.Delete.
func (d *Disk) Delete(ctx context.Context, k page.Key) error {
	if err := ctx.Err(); err != nil {
		return &StoreError{"disk", "Delete", k, err}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	e := d.index.entries[k]
	if e == nil {
		return nil
	}
	if err := errors.Join(d.removeFile(k), d.syncDir()); err != nil {
		return storeError("Delete", k, 0, err)
	}
	d.index.remove(e)
	return nil
}

// Victim is Bounded.Victim.
func (d *Disk) Victim(k page.Key, bytes int64) (page.Key, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.index.victim(k, bytes)
}

// Usage is what d holds now.
func (d *Disk) Usage() Usage {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.index.usage()
	u.OtherVersions, u.Recovered, u.RecoveredBytes = d.start.OtherVersions, d.start.Recovered, d.start.RecoveredBytes
	return u
}

// Close waits for the Puts under way and lets go of the folder. The pages stay
// for the next opening.
func (d *Disk) Close() error {
	d.mu.Lock()
	closed := d.closed
	d.closed = true
	d.mu.Unlock()
	if closed {
		return nil
	}
	d.writers.Wait()
	if err := d.unlock(); err != nil {
		return fmt.Errorf("tier: disk: closing %s: %w", d.dir, err)
	}
	return nil
}
