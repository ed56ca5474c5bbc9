package tier

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const crashPages = 60

func crashBlob(i int) []byte { return blob(key(i), 100+i*17) }

// TestMain is also the process that TestKilled kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TIER_CRASH_DIR"); dir != "" {
		err := writeUntilKilled(dir)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeUntilKilled puts and deletes pages and says so: "put 3" after, "delete 3"
// before and "deleted 3" after.
func writeUntilKilled(dir string) error {
	ctx := context.Background()
	chunk = 4096 // so that many are killed between two writes
	d, err := OpenDisk(dir, DiskOptions{NoSync: os.Getenv("TIER_CRASH_NOSYNC") != ""})
	if err != nil {
		return err
	}
	fmt.Println("open")
	done := make(chan error)
	for g := range 3 { // each has pages of its own, so that the order of what is said is that of what was done
		go func() {
			for {
				i := rand.IntN(crashPages/3)*3 + g
				if rand.IntN(4) > 0 {
					if err := d.Put(ctx, key(i), crashBlob(i)); err != nil {
						done <- err
						return
					}
					fmt.Printf("put %d\n", i)
					continue
				}
				fmt.Printf("delete %d\n", i)
				if err := d.Delete(ctx, key(i)); err != nil {
					done <- err
					return
				}
				fmt.Printf("deleted %d\n", i)
			}
		}()
	}
	return <-done
}

// TestKilled: a process killed at any point loses no page that was put and
// leaves none that is wrong or half there.
func TestKilled(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	dir := t.TempDir()
	known := map[int]string{} // the last thing said of each page, over all rounds
	left := 0                 // files half written, over all rounds
	for round := range rounds {
		killOne(t, dir, round, known)
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			if strings.HasPrefix(f.Name(), workPrefix) {
				left++
			}
		}
		checkKilled(t, dir, round, known)
	}
	if left == 0 && !testing.Short() {
		t.Error("no process was killed while it wrote a page")
	}
	t.Logf("%d processes killed, %d pages half written", rounds, left)
}

func killOne(t *testing.T, dir string, round int, known map[int]string) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "TIER_CRASH_DIR="+dir)
	if round%2 == 1 {
		c.Env = append(c.Env, "TIER_CRASH_NOSYNC=1")
	}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		_ = c.Wait()
		t.Fatalf("round %d: the process did not begin: %s", round, stderr.String())
	}
	timer := time.AfterFunc(time.Duration(5+rand.IntN(80))*time.Millisecond, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	for lines.Scan() { // until the pipe ends with the process
		var what string
		var i int
		if n, _ := fmt.Sscanf(lines.Text(), "%s %d", &what, &i); n == 2 {
			known[i] = what
		}
	}
	if err := c.Wait(); err == nil || strings.Contains(stderr.String(), "tier:") {
		t.Fatalf("round %d: %v, %s", round, err, stderr.String())
	}
}

func checkKilled(t *testing.T, dir string, round int, known map[int]string) {
	t.Helper()
	d, err := OpenDisk(dir, DiskOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if u := d.Usage(); u.Corrupt != 0 {
		t.Fatalf("round %d: %d files were no pages", round, u.Corrupt)
	}
	for i := range crashPages {
		b, err := d.Get(context.Background(), key(i), nil)
		switch {
		case err == nil && !bytes.Equal(b, crashBlob(i)):
			t.Fatalf("round %d: wrong page %d", round, i)
		case err != nil && !errors.Is(err, ErrNotFound):
			t.Fatalf("round %d: page %d: %v", round, i, err)
		case err != nil && known[i] == "put":
			t.Fatalf("round %d: page %d was put and is lost", round, i)
		}
		// one that was deleted may have been put again just before the end
		known[i] = "unknown"
		if err == nil {
			known[i] = "put"
		}
	}
}
