// Command build compiles one .cu of cuda/kernels for sm_80 and sm_90a, and to
// PTX for the rest, and writes its image and its manifest. `make cuda` calls it.
// It fails when a kernel spills registers.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/longctx/longctx/cuda/internal/fatbin"
)

// Products and sums are not contracted, and every operation is IEEE's: the bits
// of the Exact policy are the CPU's.
var flags = []string{"-std=c++17", "-O3", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"}

var archs = []string{"80", "90a"}

func main() {
	cuda := flag.String("cuda", "", "folder of the toolkit: bin/nvcc is in it")
	source := flag.String("source", "", "the .cu")
	out := flag.String("out", "", "folder to write to; bin beside the source when empty")
	flag.Parse()
	if *cuda == "" || *source == "" {
		flag.Usage()
		os.Exit(2)
	}
	if *out == "" {
		*out = filepath.Join(filepath.Dir(*source), "bin")
	}
	if err := build(*cuda, *source, *out); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

type toolkit struct {
	bin string // folder of the programs
	dir string // of the source: compilers run there, so that no path is in the image
	tmp string
}

// run returns what a program of the toolkit prints.
func (k toolkit) run(program string, args ...string) (string, error) {
	c := exec.Command(filepath.Join(k.bin, program), args...)
	c.Dir = k.dir
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func build(cuda, source, out string) error {
	tmp, err := os.MkdirTemp("", "longctx")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	bin, err := filepath.Abs(filepath.Join(cuda, "bin"))
	if err != nil {
		return err
	}
	k := toolkit{bin: bin, dir: filepath.Dir(source), tmp: tmp}
	name := filepath.Base(source)
	m := &fatbin.Manifest{Source: name, Flags: strings.Join(flags, " ")}
	if m.Hash, err = fatbin.Hash(os.DirFS(k.dir), name); err != nil {
		return err
	}
	if m.Compiler, err = k.version(); err != nil {
		return err
	}
	if fresh, err := isFresh(k, m, out); err != nil || fresh {
		return err
	}
	var images []string
	for _, arch := range archs {
		cubin, kernels, err := k.cubin(name, arch)
		if err != nil {
			return err
		}
		m.Kernels = append(m.Kernels, kernels...)
		images = append(images, "--image3=kind=elf,sm="+arch+",file="+cubin)
	}
	ptx, err := k.ptx(name, m)
	if err != nil {
		return err
	}
	images = append(images, "--image3=kind=ptx,sm="+archs[0]+",file="+ptx)
	image := filepath.Join(tmp, "image")
	if _, err := k.run("fatbinary", append([]string{"-64", "--compress-all", "--compress-mode=size", "--create=" + image}, images...)...); err != nil {
		return err
	}
	if err := report(m); err != nil {
		return err
	}
	return write(m, image, out)
}

// isFresh reports whether the image in the folder that is committed is of the
// same source, compiler and flags.
func isFresh(k toolkit, m *fatbin.Manifest, out string) (bool, error) {
	imageName, manifestName := fatbin.Names(m.Source)
	if filepath.Clean(out) != filepath.Join(k.dir, filepath.Dir(imageName)) {
		return false, nil
	}
	kernels := os.DirFS(k.dir)
	if why, err := fatbin.Stale(kernels, m.Source); err != nil || why != "" {
		return false, err
	}
	text, err := os.ReadFile(filepath.Join(k.dir, manifestName))
	if err != nil {
		return false, err
	}
	have, err := fatbin.Read(text)
	if err != nil || have.Compiler != m.Compiler || have.Flags != m.Flags {
		return false, err
	}
	fmt.Printf("%s: the image is fresh\n", m.Source)
	return true, report(have)
}

var versionLine = regexp.MustCompile(`V(\d+\.\d+\.\d+)`)

func (k toolkit) version() (string, error) {
	text, err := k.run("nvcc", "--version")
	if err != nil {
		return "", err
	}
	v := versionLine.FindStringSubmatch(text)
	if v == nil {
		return "", fmt.Errorf("nvcc --version printed no version: %s", text)
	}
	return "nvcc " + v[1], nil
}

func (k toolkit) cubin(source, arch string) (string, []fatbin.Kernel, error) {
	file := filepath.Join(k.tmp, "sm_"+arch+".cubin")
	args := append([]string{"-cubin", "-arch=sm_" + arch, "-Xptxas", "-v", "-o", file}, flags...)
	log, err := k.run("nvcc", append(args, source)...)
	if err != nil {
		return "", nil, err
	}
	kernels, err := parseLog(log, "sm_"+arch)
	if err != nil {
		return "", nil, err
	}
	return file, kernels, nil
}

// ptx writes PTX of the lowest version that has what the kernels use: a driver
// refuses what is newer than itself. The hint used_bytes_mask, which is of no
// use to a kernel but needs a later one, is left out.
func (k toolkit) ptx(source string, m *fatbin.Manifest) (string, error) {
	file := filepath.Join(k.tmp, "all.ptx")
	args := append([]string{"-ptx", "-arch=compute_" + archs[0], "-o", file}, flags...)
	if _, err := k.run("nvcc", append(args, source)...); err != nil {
		return "", err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if err := parameters(text, m); err != nil {
		return "", err
	}
	text = regexp.MustCompile(`(?m)^\s*\.pragma "used_bytes_mask.*\n`).ReplaceAll(text, nil)
	line := regexp.MustCompile(`(?m)^\.version .*$`)
	var errs []error
	for _, v := range []string{"7.0", "7.1", "7.4", "7.8", "8.0", "8.3", "8.4"} {
		if err := os.WriteFile(file, line.ReplaceAll(text, []byte(".version "+v)), 0o644); err != nil {
			return "", err
		}
		if _, err := k.run("ptxas", "-arch=sm_"+archs[0], "-O0", "-o", os.DevNull, file); err == nil {
			m.PTX = v
			return file, nil
		} else {
			errs = append(errs, err)
		}
	}
	return "", fmt.Errorf("no version of PTX that drivers of CUDA 12.4 take assembles:\n%w", errors.Join(errs...))
}

func write(m *fatbin.Manifest, image, out string) error {
	bytesOf, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(bytesOf)
	m.Image = hex.EncodeToString(sum[:])
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetIndent("", "\t")
	if err := e.Encode(m); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	imageName, manifestName := fatbin.Names(m.Source)
	return errors.Join(
		os.WriteFile(filepath.Join(out, filepath.Base(imageName)), bytesOf, 0o644),
		os.WriteFile(filepath.Join(out, filepath.Base(manifestName)), text.Bytes(), 0o644))
}
