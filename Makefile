# Builds and installs the daemon with everything that belongs to it. The daemon
# alone needs no more than `cargo build --release`.
#
#   make                             the daemon, its manual page and completions
#   make install [PREFIX=/usr/local] [DESTDIR=]
#   make uninstall                   with the same PREFIX and DESTDIR
#   make deb                         a Debian package; needs cargo-deb
#   make check                       all tests

PREFIX ?= /usr/local
LIBEXECDIR ?= $(PREFIX)/libexec
DATADIR ?= $(PREFIX)/share
DOCDIR ?= $(DATADIR)/doc/virtiofsd
UNITDIR ?= $(PREFIX)/lib/systemd/system

CARGO ?= cargo
CARGO_DEB ?= cargo-deb
INSTALL ?= install
TARGET ?= target
BINARY ?= $(TARGET)/release/virtiofsd
PAGES := $(TARGET)/pages
# Where Cargo.toml has the package's files from.
STAGE := target/deb

to := $(DESTDIR)
fill_in := sed 's|@BINARY@|$(LIBEXECDIR)/virtiofsd|'

.PHONY: all install uninstall deb check

.PHONY: binary pages
all: binary pages

# Where the sources and the libraries lie is no part of the program: whoever builds
# it, wherever, gets the same bytes from the same toolchain.
remap := --remap-path-prefix=$(CURDIR)=/virtiofsd
remap += --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo

binary:
	RUSTFLAGS="$(RUSTFLAGS) $(remap)" $(CARGO) build --release --locked

pages:
	$(CARGO) run --quiet --locked --example generate -- $(PAGES)

# Nothing is built as root that is there already.
$(BINARY):
	$(MAKE) binary
$(PAGES)/virtiofsd.1:
	$(MAKE) pages

# Each line of a recipe is one place; `uninstall` below has the same ones.
install: $(BINARY) $(PAGES)/virtiofsd.1
	$(INSTALL) -D -m 755 $(BINARY) $(to)$(LIBEXECDIR)/virtiofsd
	$(INSTALL) -D -m 644 $(PAGES)/virtiofsd.1 $(to)$(DATADIR)/man/man1/virtiofsd.1
	$(INSTALL) -D -m 644 $(PAGES)/virtiofsd.bash $(to)$(DATADIR)/bash-completion/completions/virtiofsd
	$(INSTALL) -D -m 644 $(PAGES)/_virtiofsd $(to)$(DATADIR)/zsh/vendor-completions/_virtiofsd
	$(INSTALL) -D -m 644 $(PAGES)/virtiofsd.fish $(to)$(DATADIR)/fish/vendor_completions.d/virtiofsd.fish
	$(INSTALL) -d $(to)$(DATADIR)/qemu/vhost-user $(to)$(UNITDIR) $(to)$(DOCDIR)
	$(fill_in) packaging/50-virtiofsd.json.in >$(to)$(DATADIR)/qemu/vhost-user/50-virtiofsd.json
	$(fill_in) packaging/virtiofsd@.service.in >$(to)$(UNITDIR)/virtiofsd@.service
	chmod 644 $(to)$(DATADIR)/qemu/vhost-user/50-virtiofsd.json $(to)$(UNITDIR)/virtiofsd@.service
	$(INSTALL) -m 644 packaging/virtiofsd@.socket $(to)$(UNITDIR)
	$(INSTALL) -m 644 README.md CHANGELOG.md LICENSE-APACHE LICENSE-BSD-3-Clause $(to)$(DOCDIR)
	$(INSTALL) -D -m 644 -t $(to)$(DOCDIR)/doc doc/*

uninstall:
	rm -f $(to)$(LIBEXECDIR)/virtiofsd
	rm -f $(to)$(DATADIR)/man/man1/virtiofsd.1
	rm -f $(to)$(DATADIR)/bash-completion/completions/virtiofsd
	rm -f $(to)$(DATADIR)/zsh/vendor-completions/_virtiofsd
	rm -f $(to)$(DATADIR)/fish/vendor_completions.d/virtiofsd.fish
	rm -f $(to)$(DATADIR)/qemu/vhost-user/50-virtiofsd.json
	rm -f $(to)$(UNITDIR)/virtiofsd@.service $(to)$(UNITDIR)/virtiofsd@.socket
	rm -rf $(to)$(DOCDIR)

# The licences are in the package's copyright file, and the list of changes has
# the name that Debian gives it.
deb: $(BINARY) $(PAGES)/virtiofsd.1
	rm -rf $(STAGE)
	$(MAKE) install DESTDIR=$(STAGE) PREFIX=/usr UNITDIR=/lib/systemd/system
	rm $(STAGE)/usr/share/doc/virtiofsd/LICENSE-*
	mv $(STAGE)/usr/share/doc/virtiofsd/CHANGELOG.md $(STAGE)/usr/share/doc/virtiofsd/changelog
	gzip -9n $(STAGE)/usr/share/doc/virtiofsd/changelog
	strip $(STAGE)/usr/libexec/virtiofsd
	$(CARGO_DEB) --no-build --no-strip --locked $(DEB_OPTIONS)

check:
	tests/run
